//! What axes say, and what is said where nothing can be drawn.

use crate::report::{Axis, BarSeries, Canvas, Plot, PlotData, Scale, Series, plot::drawable, scale::AxisScale};

fn labels(values: &[f64], scale: Scale) -> (Vec<String>, String) {
    let axis = AxisScale::new(values.iter().copied(), scale, 5, false).expect("there are values");
    (axis.ticks.iter().map(|t| t.label.clone()).collect(), axis.factor())
}

#[test]
fn ticks_are_round_numbers() {
    let texts = |values: &[f64], scale| {
        let (labels, factor) = labels(values, scale);
        format!("{} {factor}", labels.join(" "))
    };
    assert_eq!(texts(&[0.0, 9.7], Scale::Linear), "0 2 4 6 8 10 ");
    assert_eq!(texts(&[-1.0, 1.0], Scale::Linear), "−1.0 −0.5 0.0 0.5 1.0 ");
    assert_eq!(texts(&[0.0, 4.2e-9], Scale::Linear), "0 1 2 3 4 5 ×10⁻⁹");
    assert_eq!(texts(&[0.0, 8e12], Scale::Linear), "0 2 4 6 8 ×10¹²");
    assert_eq!(texts(&[7.0], Scale::Linear), "6.0 6.5 7.0 7.5 8.0 ");
    assert_eq!(texts(&[0.0], Scale::Linear), "−1.0 −0.5 0.0 0.5 1.0 ");
    assert_eq!(texts(&[0.001, 1000.0], Scale::Log), "0.001 0.01 0.1 1 10 100 1000 ");
    assert_eq!(texts(&[1.0, 60.0], Scale::Log), "1 2 5 10 20 50 ");
}

/// The promise of every axis, for numbers nobody expects.
#[test]
fn axes_hold_for_any_numbers() {
    let sizes = [
        0.0,
        5e-324,
        1e-300,
        1e-40,
        1e-3,
        1.0,
        1.0 + 1e-12,
        3.7,
        1e6 + 1e-3,
        1e15,
        1e40,
        1e300,
    ];
    for a in sizes {
        for b in sizes {
            for (a, b) in [(a, b), (-a, b), (a, -b), (-a, -b)] {
                for scale in [Scale::Linear, Scale::Log] {
                    for tight in [false, true] {
                        let values = [a, b].into_iter().filter(|v| drawable(*v, scale));
                        let Some(axis) = AxisScale::new(values.clone(), scale, 5, tight) else {
                            continue;
                        };
                        let what = format!("{a:e} {b:e} {scale:?} tight {tight}: {axis:?}");
                        assert!(axis.low < axis.high, "{what}");
                        assert!((1..=16).contains(&axis.ticks.len()), "{what}");
                        for pair in axis.ticks.windows(2) {
                            assert!(pair[0].value < pair[1].value, "{what}");
                            assert_ne!(pair[0].label, pair[1].label, "{what}");
                        }
                        for v in values.chain(axis.ticks.iter().map(|t| t.value)) {
                            let place = axis.place(v);
                            assert!((-1e-6..=1.0 + 1e-6).contains(&place), "{v:e} at {place}: {what}");
                        }
                    }
                }
            }
        }
    }
}

fn svg(data: PlotData) -> (String, String) {
    let plot = Plot {
        title: "t".into(),
        caption: String::new(),
        data,
    };
    let svg = plot.to_svg(Canvas::Wide, "a") + &plot.to_svg(Canvas::Narrow, "b");
    // Places and lengths must be numbers; texts may say NaN.
    let shapes: Vec<&str> = svg
        .split('<')
        .filter(|tag| !tag.starts_with("text") && !tag.starts_with("desc"))
        .collect();
    for bad in ["NaN", "inf"] {
        assert!(shapes.iter().all(|tag| !tag.contains(bad)), "{bad} in {svg}");
    }
    (svg, plot.omissions().unwrap_or_default())
}

#[test]
fn what_cannot_be_drawn_is_said() {
    let axes = || (Axis::linear("x", ""), Axis::log("y", ""));
    let (x, y) = axes();
    let hole = Series::new(
        "s",
        [
            (1.0, 1.0),
            (2.0, 2.0),
            (3.0, f64::NAN),
            (4.0, -1.0),
            (5.0, 3.0),
            (6.0, 2.0),
        ],
    );
    let (image, said) = svg(PlotData::Lines {
        x,
        y,
        series: vec![hole, Series::new("none", [])],
    });
    assert_eq!(
        image.matches("<path d=\"M").count() - image.matches("l4.8 8.4").count(),
        4,
        "a gap splits the line"
    );
    assert!(said.starts_with("2 values are not drawn"), "{said}");
    assert!(said.ends_with("Without any point: none."), "{said}");

    for values in [
        vec![],
        vec![(f64::NAN, 1.0)],
        vec![(1.0, f64::INFINITY)],
        vec![(0.0, -1.0)],
    ] {
        for scatter in [false, true] {
            let (x, y) = axes();
            let series = vec![Series::new("s", values.clone())];
            let data = if scatter {
                PlotData::Scatter { x, y, series }
            } else {
                PlotData::Lines { x, y, series }
            };
            let (image, said) = svg(data);
            assert!(image.contains("No data to draw"));
            assert!(!said.is_empty(), "{values:?}");
        }
    }

    let bars = |groups: usize, values: Vec<f64>| PlotData::Bars {
        label: "n".into(),
        unit: String::new(),
        groups: vec!["g".into(); groups],
        series: vec![BarSeries::new("s", values)],
    };
    let (image, said) = svg(bars(3, vec![1.0, f64::NAN]));
    assert_eq!(image.matches("no value").count(), 4);
    assert_eq!(said, "2 values are not drawn: missing or not a finite number.");
    let (_, said) = svg(bars(1, vec![1.0, 2.0]));
    assert_eq!(said, "1 value is not drawn: missing or not a finite number.");
    assert!(svg(bars(0, vec![])).0.contains("No data to draw"));
    for values in [[0.0, 0.0], [-1e300, 1e300], [-5.0, -1.0], [1e-310, 1e-300]] {
        assert_eq!(svg(bars(2, values.to_vec())).1, "");
    }
}
