//! The rows as a chart: four panels over the number of backends, a line for each scheduler.

use std::error::Error;
use std::ops::Range;

use plotters::prelude::*;

use super::{Row, SCHEDULERS};

/// Width and height in pixels.
const SIZE: (u32, u32) = (960, 760);
/// Colours that differ in brightness too (Okabe, Ito), and grey.
const COLOURS: [RGBColor; SCHEDULERS.len()] = [
    RGBColor(0, 114, 178),
    RGBColor(86, 180, 233),
    RGBColor(0, 158, 115),
    RGBColor(213, 94, 0),
    RGBColor(120, 120, 120),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(0, 0, 0),
];
/// Value drawn for 0, which a logarithmic axis lacks.
const NOTHING: f64 = 0.01;

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// One of the four panels.
struct Panel {
    title: &'static str,
    value: fn(&Row) -> f64,
    /// Range of the axis.
    axis: Range<f64>,
    label: fn(f64) -> String,
}

/// Draws all rows as an SVG.
pub fn draw(rows: &[Row]) -> Result<String, Box<dyn Error>> {
    let panels = [
        Panel {
            title: "build, ms",
            value: |row| row.build_ms,
            axis: 0.0001..300.0,
            label: |ms| format!("{ms}"),
        },
        Panel {
            title: "flows of the fullest backend over the mean, less 1 (bottom: even)",
            value: |row| (row.max_over_mean - 1.0).max(0.000_1),
            axis: 0.000_1..1.0,
            label: |part| if part > 0.000_1 { format!("{part}") } else { "even".to_owned() },
        },
        Panel {
            title: "survivors' flows that moved, %",
            value: |row| (row.survivors_moved_share * 100.0).max(NOTHING),
            axis: NOTHING..100.0,
            label: |percent| if percent > NOTHING { format!("{percent}") } else { "0".to_owned() },
        },
        Panel {
            title: "a choice, ns",
            value: |row| row.ns_per_choice,
            axis: 1.0..10_000.0,
            label: |ns| format!("{ns}"),
        },
    ];
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let (key, charts) = area.split_vertically(60);
        draw_key(&key)?;
        for (area, panel) in charts.split_evenly((2, 2)).iter().zip(&panels) {
            draw_panel(area, panel, rows)?;
        }
        area.present()?;
    }
    Ok(svg)
}

/// Draws the legend.
fn draw_key(area: &Area<'_>) -> Result<(), Box<dyn Error>> {
    for ((name, _), (colour, place)) in
        SCHEDULERS.iter().zip(COLOURS.iter().zip(area.split_evenly((2, SCHEDULERS.len() / 2))))
    {
        place.draw(&Rectangle::new([(20, 10), (36, 22)], colour.filled()))?;
        place.draw(&Text::new(*name, (44, 8), ("sans-serif", 15)))?;
    }
    Ok(())
}

fn draw_panel(area: &Area<'_>, panel: &Panel, rows: &[Row]) -> Result<(), Box<dyn Error>> {
    let label = |value: &f64| (panel.label)(*value);
    let mut chart = ChartBuilder::on(area)
        .caption(panel.title, ("sans-serif", 15))
        .margin(12)
        .x_label_area_size(32)
        .y_label_area_size(56)
        .build_cartesian_2d((3.0..1000.0).log_scale(), panel.axis.clone().log_scale())?;
    let backends = |count: &f64| format!("{count}");
    let mut mesh = chart.configure_mesh();
    mesh.x_desc("backends").x_label_formatter(&backends).y_label_formatter(&label).y_labels(6);
    mesh.max_light_lines(0).draw()?;
    for ((name, _), colour) in SCHEDULERS.iter().zip(COLOURS) {
        let of_it = rows.iter().filter(|row| row.scheduler == *name);
        let points: Vec<_> =
            of_it.map(|row| (f64::from(row.backends), (panel.value)(row))).collect();
        let dots = points.iter().map(|&point| Circle::new(point, 3, colour.filled()));
        chart.draw_series(dots)?;
        chart.draw_series(LineSeries::new(points, colour.stroke_width(2)))?;
    }
    Ok(())
}
