//! Charts as SVG: lines, bands and points. Bars are in `svg_bars`.
//!
//! Written by hand instead of by a plotting library, because the page needs what those do not give: colours that
//! are CSS variables (one drawing for light and dark), real text, a title and a description for screen readers,
//! and a legend that has a place of its own. A drawing is also complete without the page: every variable has a
//! fall-back. Series differ in dash and mark as well as in colour.

use super::plot::{Axis, Plot, PlotData, Point, Scale, Series};
use super::scale::AxisScale;
use super::table::join_unit;
use super::text::{escape, width};
use std::fmt::Write as _;

/// For which width a chart is laid out. It scales to any other; text is then larger or smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Canvas {
    /// A page on a desk or on paper.
    Wide,
    /// A telephone held upright.
    Narrow,
}

impl Canvas {
    pub(crate) fn width(self) -> f64 {
        match self {
            Self::Wide => 760.0,
            Self::Narrow => 380.0,
        }
    }

    fn height(self) -> f64 {
        match self {
            Self::Wide => 300.0,
            Self::Narrow => 240.0,
        }
    }
}

pub(crate) const FONT: f64 = 12.5;
pub(crate) const LINE: f64 = 18.0;
pub(crate) const MUTED: &str = "fill:var(--muted,#5b6470)";
pub(crate) const GRID: &str = "stroke:var(--rule,#dfe3e8);stroke-width:1";
pub(crate) const AXIS: &str = "stroke:var(--axis,#9aa3ad);stroke-width:1";

/// After Okabe and Ito, darkened to at least 3:1 against white; the page has lighter ones for dark screens.
const COLOURS: [&str; 8] = [
    "#0068b0", "#cc4e00", "#007a5c", "#b0448a", "#946200", "#3a86b8", "#5c4db3", "#4d5561",
];
const DASHES: [&str; 4] = ["", "7 4", "2 3", "9 3 2 3"];

/// Colour of a series as a CSS value.
pub(crate) fn colour(series: usize) -> String {
    let i = series % COLOURS.len();
    format!("var(--s{},{})", i + 1, COLOURS[i])
}

fn dash(series: usize) -> &'static str {
    // Shifted at every round through the colours, so that series 0 and 8 differ.
    DASHES[(series + series / COLOURS.len()) % DASHES.len()]
}

/// Width of a text in the drawing. An estimate for a sans-serif face that is rarely too small.
pub(crate) fn text_width(text: &str) -> f64 {
    width(text) as f64 * FONT * 0.56
}

/// The text, shortened with an ellipsis to fit.
pub(crate) fn fit(text: &str, room: f64) -> String {
    if text_width(text) <= room {
        return text.to_owned();
    }
    let mut out = text.to_owned();
    while !out.is_empty() && text_width(&out) + FONT * 0.6 > room {
        out.pop();
    }
    out.push('…');
    out
}

/// `anchor` is start, middle or end; `y` is the base line.
pub(crate) fn text(out: &mut String, x: f64, y: f64, anchor: &str, style: &str, content: &str) {
    let content = escape(content);
    let _ = write!(
        out,
        r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" style="{style}">{content}</text>"#
    );
}

pub(crate) fn line(out: &mut String, from: (f64, f64), to: (f64, f64), style: &str) {
    let ((x1, y1), (x2, y2)) = (from, to);
    let _ = write!(
        out,
        r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" style="{style}"/>"#
    );
}

impl Plot {
    /// The chart as one `<svg>` element. `id` must be unique within the page.
    pub fn to_svg(&self, canvas: Canvas, id: &str) -> String {
        let (body, height) = match &self.data {
            PlotData::Lines { x, y, series } => xy(x, y, series, canvas, false),
            PlotData::Scatter { x, y, series } => xy(x, y, series, canvas, true),
            PlotData::Bars {
                label,
                unit,
                groups,
                series,
            } => super::svg_bars::bars(&join_unit(label, unit), groups, series, canvas),
        };
        let (id, title, width) = (escape(id), escape(&self.title), canvas.width());
        let desc = escape(&self.summary().join(" "));
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height:.0}\" role=\"img\" \
             aria-labelledby=\"{id}-t {id}-d\" font-family=\"system-ui, sans-serif\" font-size=\"{FONT}\" \
             style=\"font-variant-numeric:tabular-nums\"><title id=\"{id}-t\">{title}</title>\
             <desc id=\"{id}-d\">{desc}</desc>{body}</svg>"
        )
    }
}

/// Writes the legend in as many rows as it needs; returns the height it took. `swatch` draws the sample of one
/// series, `sample` wide, around a point.
pub(crate) fn legend(
    out: &mut String,
    names: &[&str],
    canvas: Canvas,
    sample: f64,
    swatch: impl Fn(&mut String, usize, f64, f64),
) -> f64 {
    if names.len() < 2 {
        return 0.0;
    }
    let (mut x, mut y) = (0.0, 0.0);
    for (i, name) in names.iter().enumerate() {
        let name = fit(name, canvas.width() - sample - 12.0);
        let need = sample + 6.0 + text_width(&name) + 16.0;
        if x > 0.0 && x + need > canvas.width() + 16.0 {
            (x, y) = (0.0, y + LINE);
        }
        swatch(out, i, x + sample / 2.0, y + 9.0);
        text(out, x + sample + 6.0, y + 13.5, "start", "fill:currentColor", &name);
        x += need;
    }
    y + LINE + 6.0
}

/// Where the data is drawn, and how numbers get there.
struct Frame {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    x: AxisScale,
    y: AxisScale,
}

impl Frame {
    fn px(&self, x: f64) -> f64 {
        self.left + self.x.place(x) * (self.right - self.left)
    }

    fn py(&self, y: f64) -> f64 {
        self.bottom - self.y.place(y) * (self.bottom - self.top)
    }
}

/// Title of an axis with its unit and the power of ten its labels leave out.
pub(crate) fn axis_title(name: &str, scale: &AxisScale) -> String {
    match scale.factor() {
        f if f.is_empty() => name.to_owned(),
        f => format!("{name} {f}"),
    }
}

/// What a chart without data shows instead of an empty frame that looks like a defect.
pub(crate) fn nothing(out: &mut String, canvas: Canvas, top: f64) -> f64 {
    let (width, height) = (canvas.width(), 96.0);
    let _ = write!(
        out,
        r#"<rect x="0.5" y="{:.1}" width="{:.1}" height="{height}" rx="6" style="fill:none;{AXIS};stroke-dasharray:4 4"/>"#,
        top + 0.5,
        width - 1.0,
    );
    text(
        out,
        width / 2.0,
        top + height / 2.0 + 4.0,
        "middle",
        MUTED,
        "No data to draw",
    );
    top + height + 1.0
}

fn xy(x: &Axis, y: &Axis, series: &[Series], canvas: Canvas, scatter: bool) -> (String, f64) {
    let mut out = String::new();
    let names: Vec<&str> = series.iter().map(|s| s.name.as_str()).collect();
    let mut top = legend(
        &mut out,
        &names,
        canvas,
        if scatter { 10.0 } else { 24.0 },
        |out, i, cx, cy| {
            if scatter {
                mark(out, i, cx, cy);
            } else {
                line(out, (cx - 12.0, cy), (cx + 12.0, cy), &stroke(i));
            }
        },
    );
    let shown = || {
        series
            .iter()
            .flat_map(|s| &s.points)
            .filter(|p| p.drawable(x.scale, y.scale))
    };
    let (x_count, y_count) = if canvas == Canvas::Wide { (8, 5) } else { (4, 5) };
    let xs = AxisScale::new(shown().map(|p| p.x), x.scale, x_count, !scatter);
    let ends = |p: &Point| p.band(y.scale).map_or([p.y; 2], |(low, high)| [low, high]);
    let ys = shown().flat_map(|p| [p.y].into_iter().chain(ends(p)));
    let ys = AxisScale::new(ys, y.scale, y_count, false);
    let (Some(xs), Some(ys)) = (xs, ys) else {
        let height = nothing(&mut out, canvas, top);
        return (out, height);
    };

    let labels = ys.ticks.iter().map(|t| text_width(&t.label)).fold(0.0, f64::max);
    // The vertical axis is named above its end: no turned text, and no width lost on a telephone.
    let name = axis_title(&join_unit(&y.label, &y.unit), &ys);
    text(&mut out, 0.0, top + 13.5, "start", MUTED, &fit(&name, canvas.width()));
    top += LINE + 8.0;
    let frame = Frame {
        left: labels + 10.0,
        right: canvas.width() - 14.0,
        top,
        bottom: top + canvas.height() - 70.0,
        x: xs,
        y: ys,
    };
    axes(&mut out, &frame, &join_unit(&x.label, &x.unit));
    for (i, s) in series.iter().enumerate() {
        let points: Vec<&Point> = s.points.iter().collect();
        if scatter {
            cloud(&mut out, &frame, i, &points);
        } else {
            // A point that cannot be drawn breaks the line: a bridge over it would be made up.
            for run in points.split(|p| !p.drawable(x.scale, y.scale)) {
                curve(&mut out, &frame, i, run);
            }
        }
    }
    if scatter {
        point_labels(&mut out, &frame, series);
    }
    let height = frame.bottom + 2.0 * LINE + 8.0;
    (out, height)
}

fn axes(out: &mut String, frame: &Frame, x_title: &str) {
    for tick in &frame.y.ticks {
        let y = frame.py(tick.value);
        line(out, (frame.left, y), (frame.right, y), GRID);
        text(out, frame.left - 8.0, y + 4.2, "end", MUTED, &tick.label);
    }
    let mut free = f64::NEG_INFINITY;
    for tick in &frame.x.ticks {
        let x = frame.px(tick.value);
        line(out, (x, frame.bottom), (x, frame.bottom + 4.0), AXIS);
        let half = text_width(&tick.label) / 2.0;
        // Never out of the drawing, never over the label before.
        let centre = x.clamp(half, (frame.right + 14.0 - half).max(half));
        if centre - half > free {
            text(out, centre, frame.bottom + LINE, "middle", MUTED, &tick.label);
            free = centre + half + 6.0;
        }
    }
    line(out, (frame.left, frame.bottom), (frame.right, frame.bottom), AXIS);
    let name = axis_title(x_title, &frame.x);
    let room = frame.right - frame.left;
    text(
        out,
        frame.right,
        frame.bottom + 2.0 * LINE,
        "end",
        MUTED,
        &fit(&name, room),
    );
}

fn stroke(series: usize) -> String {
    format!(
        "fill:none;stroke:{};stroke-width:2;stroke-linejoin:round;stroke-linecap:butt;stroke-dasharray:{}",
        colour(series),
        match dash(series) {
            "" => "none",
            pattern => pattern,
        }
    )
}

/// One unbroken stretch of a line, its band beneath it, and its points where they are few.
fn curve(out: &mut String, frame: &Frame, series: usize, run: &[&Point]) {
    for band in run.split(|p| p.band(frame.y.scale).is_none()) {
        let ends = |p: &Point| p.band(frame.y.scale).unwrap_or((p.y, p.y));
        let upper = band.iter().map(|p| (frame.px(p.x), frame.py(ends(p).1)));
        let lower = band.iter().rev().map(|p| (frame.px(p.x), frame.py(ends(p).0)));
        if band.len() > 1 {
            let path = path(upper.chain(lower));
            let _ = write!(
                out,
                r#"<path d="{path}Z" style="fill:{};opacity:.18"/>"#,
                colour(series)
            );
        }
    }
    if run.len() > 1 {
        let path = path(run.iter().map(|p| (frame.px(p.x), frame.py(p.y))));
        let _ = write!(out, r#"<path d="{path}" style="{}"/>"#, stroke(series));
    }
    if run.len() <= 12 {
        for p in run {
            mark(out, series, frame.px(p.x), frame.py(p.y));
        }
    }
}

/// Path data; points nearer than a quarter of a pixel to the last one are left out, which shortens long training
/// curves by far and cannot be seen.
fn path(points: impl Iterator<Item = (f64, f64)>) -> String {
    let mut out = String::new();
    let mut last = None;
    let mut points = points.peekable();
    while let Some((x, y)) = points.next() {
        let near = last.is_some_and(|(a, b): (f64, f64)| (a - x).abs() < 0.25 && (b - y).abs() < 0.25);
        if near && points.peek().is_some() {
            continue;
        }
        let _ = write!(out, "{}{x:.1} {y:.1}", if last.is_none() { 'M' } else { 'L' });
        last = Some((x, y));
    }
    out
}

fn cloud(out: &mut String, frame: &Frame, series: usize, points: &[&Point]) {
    for p in points.iter().filter(|p| p.drawable(frame.x.scale, frame.y.scale)) {
        let (x, y) = (frame.px(p.x), frame.py(p.y));
        if let Some((low, high)) = p.band(frame.y.scale) {
            let style = format!("stroke:{};stroke-width:1.2", colour(series));
            line(out, (x, frame.py(low)), (x, frame.py(high)), &style);
        }
        mark(out, series, x, y);
    }
}

/// Mark of a series: four shapes, so that colour is not needed. The outline keeps marks apart that overlap.
fn mark(out: &mut String, series: usize, x: f64, y: f64) {
    let r = 4.0;
    let style = format!("fill:{};stroke:var(--paper,#fff);stroke-width:1", colour(series));
    let shape = match (series + series / COLOURS.len()) % 4 {
        0 => format!(r#"<circle cx="{x:.1}" cy="{y:.1}" r="{r}" style="{style}"/>"#),
        1 => format!(
            r#"<rect x="{:.1}" y="{:.1}" width="7.2" height="7.2" style="{style}"/>"#,
            x - 3.6,
            y - 3.6
        ),
        2 => format!(r#"<path d="M{x:.1} {:.1}l4.8 8.4h-9.6Z" style="{style}"/>"#, y - 5.2),
        _ => format!(r#"<path d="M{x:.1} {:.1}l5 5l-5 5l-5 -5Z" style="{style}"/>"#, y - 5.0),
    };
    out.push_str(&shape);
}

/// Writes the names of points where there is room: right, left, above, below, in this order. A name without any
/// room is left to the description, because overlapping names cannot be read.
fn point_labels(out: &mut String, frame: &Frame, series: &[Series]) {
    let all = || series.iter().flat_map(|s| &s.points);
    let shown = || all().filter(|p| p.drawable(frame.x.scale, frame.y.scale));
    let mut taken: Vec<[f64; 4]> = shown()
        .map(|p| {
            let (x, y) = (frame.px(p.x), frame.py(p.y));
            [x - 5.0, y - 5.0, x + 5.0, y + 5.0]
        })
        .collect();
    for p in shown().filter(|p| !p.label.is_empty()) {
        let (x, y, w) = (frame.px(p.x), frame.py(p.y), text_width(&p.label));
        let places = [
            (x + 8.0, y + 4.0),
            (x - 8.0 - w, y + 4.0),
            (x - w / 2.0, y - 9.0),
            (x - w / 2.0, y + 17.0),
        ];
        let place = places.into_iter().find_map(|(left, base)| {
            let area = [left, base - 9.0, left + w, base + 3.0];
            let inside = area[0] >= frame.left && area[2] <= frame.right + 14.0;
            let apart = |b: &[f64; 4]| area[2] < b[0] || b[2] < area[0] || area[3] < b[1] || b[3] < area[1];
            let inside = inside && area[1] >= frame.top - 8.0 && area[3] <= frame.bottom;
            (inside && taken.iter().all(apart)).then_some((left, base, area))
        });
        if let Some((left, base, area)) = place {
            text(out, left, base, "start", "fill:currentColor", &p.label);
            taken.push(area);
        }
    }
}

/// A linear axis that reaches zero, where bars begin; `None` without values.
pub(crate) fn zero_inside(values: impl Iterator<Item = f64>, count: usize) -> Option<AxisScale> {
    let mut values = values.peekable();
    values.peek()?;
    AxisScale::new(values.chain([0.0]), Scale::Linear, count, false)
}
