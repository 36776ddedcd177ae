//! Bounds on the effects of a change, such as `broken>0.1%`.

use std::fmt;
use std::str::FromStr;

use super::row::Row;
use crate::format::percent;

/// A figure and its upper bound.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bound {
    metric: Metric,
    limit: f64,
}

/// A figure of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Metric {
    Broken,
    BrokenWithout,
    Moved,
    Dropped,
    MaxOverMean,
    MaxOverMeanAfter,
}

const METRICS: [(&str, Metric); 6] = [
    ("broken", Metric::Broken),
    ("broken_without_conntrack", Metric::BrokenWithout),
    ("moved", Metric::Moved),
    ("dropped", Metric::Dropped),
    ("max_over_mean", Metric::MaxOverMean),
    ("max_over_mean_after", Metric::MaxOverMeanAfter),
];

impl Metric {
    const fn of(self, row: &Row) -> f64 {
        match self {
            Self::Broken => row.broken_with_conntrack_share,
            Self::BrokenWithout => row.broken_without_conntrack_share,
            Self::Moved => row.new_flows_moved_share,
            Self::Dropped => row.new_flows_dropped_share,
            Self::MaxOverMean => row.max_over_mean,
            Self::MaxOverMeanAfter => row.max_over_mean_after,
        }
    }

    const fn is_share(self) -> bool {
        !matches!(self, Self::MaxOverMean | Self::MaxOverMeanAfter)
    }

    fn as_str(self) -> &'static str {
        METRICS.iter().find(|(_, metric)| *metric == self).map_or("", |(name, _)| name)
    }

    fn show(self, value: f64) -> String {
        if self.is_share() { percent(value) } else { format!("{value:.2}") }
    }
}

impl Bound {
    /// Returns a message if a row exceeds the bound.
    pub fn judge(&self, row: &Row) -> Option<String> {
        let value = self.metric.of(row);
        let (vip, name, show) = (&row.vip, row.name, self.metric.show(value));
        (value > self.limit).then(|| {
            format!("VIP {vip}, scheduler {name}: {} is {show}: {self}", self.metric.as_str())
        })
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "more than {}", self.metric.show(self.limit))
    }
}

impl FromStr for Bound {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FIX: &str = "write a figure, > and a percentage or number, such as broken>0.1%";
        let (name, limit) = text.split_once('>').ok_or(FIX)?;
        let name = name.trim();
        let found = METRICS.iter().find(|(known, _)| *known == name);
        let &(_, metric) = found.ok_or_else(|| {
            let known = METRICS.map(|(known, _)| known).join(", ");
            format!("\"{name}\" is no figure; the figures are: {known}")
        })?;
        let limit = share_or_number(limit).ok_or(FIX)?;
        if metric.is_share() && limit > 1.0 {
            let limit = limit.min(100.0);
            return Err(format!("{name} is a share, at most 1; write {limit}% for per cent"));
        }
        Ok(Self { metric, limit })
    }
}

/// Parses `0.1%` or `0.001`; rejects negative numbers.
pub fn share_or_number(text: &str) -> Option<f64> {
    let text = text.trim();
    let (digits, unit) = match text.strip_suffix('%') {
        Some(digits) => (digits.trim_end(), 100.0),
        None => (text, 1.0),
    };
    let number: f64 = digits.parse().ok()?;
    (number.is_finite() && number >= 0.0).then_some(number / unit)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_percentages_or_numbers() {
        for (text, metric, limit) in [
            ("broken>0.1%", Metric::Broken, 0.001),
            ("broken > 0", Metric::Broken, 0.0),
            ("broken_without_conntrack>0.5", Metric::BrokenWithout, 0.5),
            ("moved>100 %", Metric::Moved, 1.0),
            ("dropped>0", Metric::Dropped, 0.0),
            ("max_over_mean>1.25", Metric::MaxOverMean, 1.25),
            ("max_over_mean_after>125%", Metric::MaxOverMeanAfter, 1.25),
        ] {
            assert_eq!(text.parse(), Ok(Bound { metric, limit }), "{text}");
        }
        for text in
            ["", "broken", "broken>", "broken>x", "broken>-1", "lost>1%", "moved>5", "broken>NaN%"]
        {
            assert!(text.parse::<Bound>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_row_at_the_bound_is_good_and_one_over_it_is_named() {
        let row = Row {
            vip: "web".to_owned(),
            name: "maglev",
            broken_with_conntrack_share: 0.25,
            max_over_mean: 1.5,
            ..Row::default()
        };
        let judge = |text: &str| text.parse::<Bound>().unwrap().judge(&row);
        assert_eq!(judge("broken>25%"), None);
        let said = "VIP web, scheduler maglev: broken is 25.0 %: more than 0.10 %";
        assert_eq!(judge("broken>0.1%").unwrap(), said);
        let said = "VIP web, scheduler maglev: max_over_mean is 1.50: more than 1.25";
        assert_eq!(judge("max_over_mean>1.25").unwrap(), said);
    }
}
