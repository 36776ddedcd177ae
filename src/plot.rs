//! Common parts of all charts: size, colours, axes, and the composition of SVGs.

use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

/// Size of one chart, in pixels.
pub const SIZE: (u32, u32) = (760, 300);
// Colours that also differ in brightness, for readers with red-green colour blindness (Okabe, Ito).
/// Colour of the first series.
pub const BLUE: RGBColor = RGBColor(0, 114, 178);
/// Colour of the second series.
pub const ORANGE: RGBColor = RGBColor(230, 159, 0);
/// Colour of failures.
pub const VERMILION: RGBColor = RGBColor(213, 94, 0);

/// Error of a drawing operation.
pub type DrawingError<'a> = DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>;
/// Drawing area of a chart.
pub type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
/// A chart with two numeric axes.
pub type Chart<'a, 'b> =
    ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// Runs `draw` on an empty area; returns `None` if drawing failed, so that a report lacks the
/// chart.
pub fn svg(draw: impl FnOnce(&Area<'_>) -> Option<()>) -> Option<String> {
    let mut out = String::new();
    {
        let area = SVGBackend::with_string(&mut out, SIZE).into_drawing_area();
        area.fill(&WHITE).ok()?;
        draw(&area)?;
        area.present().ok()?;
    }
    Some(out)
}

/// Combines all charts (`<svg>` elements of [`SIZE`]) in one SVG, from top to bottom.
pub fn stack<'a>(charts: impl ExactSizeIterator<Item = &'a str>) -> String {
    let (width, height) = SIZE;
    let all = charts.len().max(1) as u64 * u64::from(height);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{all}\" \
         viewBox=\"0 0 {width} {all}\">\n"
    );
    for (index, chart) in (0_u64..).zip(charts) {
        let y = index * u64::from(height);
        out += &chart.replacen("<svg ", &format!("<svg x=\"0\" y=\"{y}\" "), 1);
    }
    out + "</svg>\n"
}

/// Creates a chart with an x axis from `from` to `to` and a y axis from 0 to 10 % above `top`, at
/// least 1.
pub fn axes<'a, 'b>(
    area: &'a Area<'b>,
    (from, to): (f64, f64),
    top: f64,
) -> Result<Chart<'a, 'b>, DrawingError<'b>> {
    ChartBuilder::on(area)
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(72)
        .build_cartesian_2d(from..to, 0.0..(top * 1.1).max(1.0))
}

/// Draws the names of all series in the upper left corner.
pub fn legend<'a, 'b: 'a>(chart: &mut Chart<'a, 'b>) -> Option<()> {
    let mut labels = chart.configure_series_labels();
    labels.background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.2));
    labels.position(SeriesLabelPosition::UpperLeft).draw().ok()
}
