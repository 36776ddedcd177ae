//! What all charts have in common: size, colours, axes, and how SVGs are put together.

use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

/// Size of one chart, in pixels.
pub const SIZE: (u32, u32) = (760, 300);
// Colours that differ in brightness too, for those who do not tell red from green (Okabe, Ito).
/// The first of two things.
pub const BLUE: RGBColor = RGBColor(0, 114, 178);
/// The second.
pub const ORANGE: RGBColor = RGBColor(230, 159, 0);
/// What is bad.
pub const VERMILION: RGBColor = RGBColor(213, 94, 0);

/// Why nothing could be drawn.
pub type DrawingError<'a> = DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>;
/// Where a chart is drawn.
pub type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
/// A chart with two axes of numbers.
pub type Chart<'a, 'b> =
    ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// Runs `draw` on an empty area; `None` if drawing failed, which leaves a report without a chart.
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

/// All charts (`<svg>` elements of [`SIZE`]) in one SVG, one below the other.
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

/// Axes from 0, with room above.
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

/// The names of what was drawn, in the upper left corner.
pub fn legend<'a, 'b: 'a>(chart: &mut Chart<'a, 'b>) -> Option<()> {
    let mut labels = chart.configure_series_labels();
    labels.background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.2));
    labels.position(SeriesLabelPosition::UpperLeft).draw().ok()
}
