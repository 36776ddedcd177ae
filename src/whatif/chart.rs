//! Charts of a simulation as SVG: broken and moved flows, and evenness of the load.

use plotters::prelude::*;

use super::row::Row;
use crate::plot::{BLUE, Chart, ORANGE, VERMILION, axes, legend, stack, svg};

/// A kind of bar: its name, its colour and its height.
type Bar = (&'static str, RGBColor, fn(&Row) -> f64);

const SHARES: [Bar; 3] = [
    ("broken with conntrack", VERMILION, |row| row.broken_with_conntrack_share * 100.0),
    ("broken without conntrack", ORANGE, |row| row.broken_without_conntrack_share * 100.0),
    ("new flows that moved", BLUE, |row| row.new_flows_moved_share * 100.0),
];
const LOADS: [Bar; 2] = [
    ("before the change", BLUE, |row| row.max_over_mean),
    ("after it", ORANGE, |row| row.max_over_mean_after),
];

/// Draws two charts with a group of bars per row; empty if drawing failed.
pub fn charts(rows: &[Row]) -> String {
    let drawn = [bars(rows, "% of the flows", &SHARES), bars(rows, "max / mean load", &LOADS)];
    let drawn: Vec<String> = drawn.into_iter().flatten().collect();
    stack(drawn.iter().map(String::as_str))
}

fn bars(rows: &[Row], what: &str, kinds: &[Bar]) -> Option<String> {
    let names = names(rows);
    let heights = rows.iter().flat_map(|row| kinds.iter().map(|(_, _, height)| height(row)));
    // Leaves room for the legend above the fullest chart.
    let top = heights.fold(0.0, f64::max) * 1.4;
    svg(|area| {
        let mut chart = axes(area, (-0.5, rows.len() as f64 - 0.5), top).ok()?;
        let name = |x: &f64| label(&names, *x);
        let mut mesh = chart.configure_mesh();
        mesh.disable_x_mesh().y_desc(what).x_labels(rows.len().max(1));
        mesh.x_label_formatter(&name).draw().ok()?;
        for (number, bar) in (0_u32..).zip(kinds) {
            let step = 0.8 / kinds.len() as f64;
            series(&mut chart, rows, bar, (f64::from(number) * step - 0.4, step * 0.9))?;
        }
        legend(&mut chart)
    })
}

/// Draws one bar per row, offset by `left` from the middle of its group.
fn series(
    chart: &mut Chart<'_, '_>,
    rows: &[Row],
    &(name, colour, height): &Bar,
    (left, width): (f64, f64),
) -> Option<()> {
    let bar = |(index, row): (u32, &Row)| {
        let x = f64::from(index) + left;
        Rectangle::new([(x, 0.0), (x + width, height(row))], colour.filled())
    };
    let series = chart.draw_series((0..).zip(rows).map(bar)).ok()?;
    series
        .label(name)
        .legend(move |(x, y)| Rectangle::new([(x, y - 4), (x + 14, y + 4)], colour.filled()));
    Some(())
}

/// Returns the names of the schedulers, with the VIP if there are several VIPs.
fn names(rows: &[Row]) -> Vec<String> {
    let one =
        rows.windows(2).all(|pair| pair.first().map(|r| &r.vip) == pair.last().map(|r| &r.vip));
    let name =
        |row: &Row| if one { row.name.to_owned() } else { format!("{}: {}", row.vip, row.name) };
    rows.iter().map(name).collect()
}

/// Returns the label at a whole number; empty in between.
fn label(names: &[String], x: f64) -> String {
    let is_at = |index: u32| (f64::from(index) - x).abs() < 0.01;
    let found = (0_u32..).zip(names).find(|(index, _)| is_at(*index));
    found.map(|(_, name)| name.clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(vip: &str, name: &'static str) -> Row {
        Row { vip: vip.to_owned(), name, max_over_mean: 1.5, ..Row::default() }
    }

    #[test]
    fn every_scheduler_is_named_in_both_charts() {
        let svg = charts(&[row("web", "maglev"), row("web", "ring"), row("web", "bounded")]);
        assert_eq!((svg.matches("<svg ").count(), svg.matches("</svg>").count()), (3, 3));
        for name in ["maglev", "ring", "bounded"] {
            assert_eq!(svg.matches(&format!("\n{name}\n")).count(), 2, "{name}");
        }
    }

    #[test]
    fn vips_are_named_where_there_are_several() {
        let svg = charts(&[row("web", "maglev"), row("api", "maglev")]);
        assert!(svg.contains("\nweb: maglev\n") && svg.contains("\napi: maglev\n"));
        assert!(charts(&[row("web", "maglev")]).contains("\nmaglev\n"));
        assert!(charts(&[]).starts_with("<svg "));
    }
}
