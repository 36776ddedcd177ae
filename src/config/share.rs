//! `table_share` of a VIP: its guaranteed part of each worker's flow table and SNAT ports.

use super::key_path::{KeyPath, Located};
use super::report::Report;
use super::sections::Sections;
use crate::forwarding::share::WHOLE;

/// Reads the share of a VIP, in parts per million.
pub(super) fn check(
    raw: Option<f64>,
    key_path: &KeyPath,
    pin: bool,
    report: &mut Report<'_>,
) -> Option<u32> {
    let share = report.real(key_path, Some(raw?), 0.0, 0.0..=1.0);
    if !pin {
        let what = "pin = false leaves no flows in the table";
        report.error(key_path, what, "remove the key, or use pin = true");
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to a million")]
    let millionths = (share * f64::from(WHOLE)) as u32;
    Some(millionths)
}

/// Checks that no more than a whole table is guaranteed.
pub(super) fn rules(sections: &Sections<'_>, report: &mut Report<'_>) {
    for v4 in [true, false] {
        let mut sum = 0_u32;
        for (Located { value: vip, key_path }, _) in sections.vips {
            if vip.address.address().is_v4() != v4 {
                continue;
            }
            let Some(share) = vip.policy.table_share else { continue };
            let before = sum;
            sum = sum.saturating_add(share);
            if sum > WHOLE && before <= WHOLE {
                let family = if v4 { "IPv4" } else { "IPv6" };
                let what = format!(
                    "the shares of the {family} VIPs up to this one are {} together, more than the \
                     table has",
                    f64::from(sum) / f64::from(WHOLE)
                );
                let key_path = key_path.key("table_share");
                report.error(&key_path, what, "lower some of them: 1 is the whole table");
            }
        }
    }
}
