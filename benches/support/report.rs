//! Rows, as a table and as JSON.

use serde::Serialize;

use super::measure::Spread;

/// One row of the document. Absent values are left out.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Row {
    pub name: String,
    pub flows: u64,
    pub ns_per_packet: f64,
    pub ns_min: f64,
    pub ns_max: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub floor_ns: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio_to_floor: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio_min: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio_max: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hashbrown_ns: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hashbrown_one_by_one_ns: Option<f64>,
}

/// A figure that is not a time per packet.
#[derive(Debug, Serialize)]
pub struct Figure {
    pub name: &'static str,
    /// The parameter: number of workers, or of backends.
    pub of: u64,
    pub unit: &'static str,
    pub value: f64,
    pub min: f64,
    pub max: f64,
    /// Upper bound that the value should meet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goal: Option<f64>,
}

impl Figure {
    /// Creates a figure that was measured several times.
    pub fn new(name: &'static str, of: u64, unit: &'static str, spread: Spread) -> Self {
        let Spread { median, min, max } = spread;
        Self { name, of, unit, value: round(median), min: round(min), max: round(max), goal: None }
    }

    /// Sets the goal.
    pub fn below(self, goal: f64) -> Self {
        Self { goal: Some(goal), ..self }
    }
}

/// The document of a bench of such figures.
#[derive(Debug, Default, Serialize)]
pub struct Figures {
    pub rows: Vec<Figure>,
}

impl Figures {
    /// Prints the document as JSON or as a table.
    pub fn print(&self, json: bool) -> Result<(), serde_json::Error> {
        if json {
            println!("{}", serde_json::to_string_pretty(self)?);
            return Ok(());
        }
        for Figure { name, of, unit, value, min, max, goal } in &self.rows {
            let goal = goal.map_or_else(String::new, |goal| format!("  goal: below {goal}"));
            println!("{name:<28}{of:>8}{value:>12.2} {unit:<8}({min:.2}-{max:.2}){goal}");
        }
        Ok(())
    }
}

/// The document of one bench.
#[derive(Debug, Default, Serialize)]
pub struct Document {
    pub rows: Vec<Row>,
}

impl Row {
    /// Creates a row with its time.
    pub fn new(name: &str, flows: u64, ns: Spread) -> Self {
        Self {
            name: name.to_owned(),
            flows,
            ns_per_packet: round(ns.median),
            ns_min: round(ns.min),
            ns_max: round(ns.max),
            ..Self::default()
        }
    }

    /// Adds the floor of the same run.
    pub fn with_floor(mut self, floor: Spread, ratio: Spread) -> Self {
        self.floor_ns = Some(round(floor.median));
        self.ratio_to_floor = Some(round(ratio.median));
        (self.ratio_min, self.ratio_max) = (Some(round(ratio.min)), Some(round(ratio.max)));
        self
    }

    /// Adds hashbrown in the same run: in a tight loop, and one packet at a time.
    pub fn with_hashbrown(mut self, batched: Spread, one_by_one: Option<Spread>) -> Self {
        self.hashbrown_ns = Some(round(batched.median));
        self.hashbrown_one_by_one_ns = one_by_one.map(|ns| round(ns.median));
        self
    }
}

/// Rounds to two decimals.
pub fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

impl Document {
    /// Prints the document as JSON or as a table.
    pub fn print(&self, json: bool) -> Result<(), serde_json::Error> {
        if json {
            println!("{}", serde_json::to_string_pretty(self)?);
            return Ok(());
        }
        println!(
            "{:<24}{:>10}{:>10}  {:<18}{:>8}  ratio to floor",
            "", "flows", "ns", "(min-max)", "floor"
        );
        for row in &self.rows {
            println!("{}", line(row));
        }
        Ok(())
    }
}

fn line(row: &Row) -> String {
    let spread = format!("({:.1}-{:.1})", row.ns_min, row.ns_max);
    let mut line =
        format!("{:<24}{:>10}{:>10.1}  {spread:<18}", row.name, row.flows, row.ns_per_packet);
    if let (Some(floor), Some(ratio), Some(min), Some(max)) =
        (row.floor_ns, row.ratio_to_floor, row.ratio_min, row.ratio_max)
    {
        line += &format!("{floor:>8.1}  {ratio:.2} ({min:.2}-{max:.2})");
    }
    if let Some(ns) = row.hashbrown_ns {
        line += &format!("  hashbrown {ns:.1}");
    }
    if let Some(ns) = row.hashbrown_one_by_one_ns {
        line += &format!(", one by one {ns:.1}");
    }
    line
}
