//! Bar charts: horizontal, so that names of any length can be read, with the number at the end of each bar.

use super::plot::{Bar, BarSeries, Scale, drawable, short};
use super::scale::AxisScale;
use super::svg::{
    AXIS, Canvas, FONT, GRID, LINE, MUTED, axis_title, colour, fit, legend, line, nothing, text, text_width,
    zero_inside,
};
use std::fmt::Write as _;

const BAR: f64 = 17.0;
const BETWEEN: f64 = 3.0;

/// The chart and its height.
pub(crate) fn bars(axis: &str, groups: &[String], series: &[BarSeries], canvas: Canvas) -> (String, f64) {
    let mut out = String::new();
    let names: Vec<&str> = series.iter().map(|s| s.name.as_str()).collect();
    let mut top = legend(&mut out, &names, canvas, 12.0, |out, i, cx, cy| {
        rect(out, i, cx - 6.0, cy - 6.0, 12.0, 12.0);
    });
    let shown = || {
        let bars = series.iter().flat_map(|s| s.bars.iter().take(groups.len()));
        bars.filter(|b| drawable(b.value, Scale::Linear))
    };
    let extent = shown().flat_map(|b| {
        let (low, high) = b.band().unwrap_or((b.value, b.value));
        [b.value, low, high]
    });
    let Some(scale) = zero_inside(extent, if canvas == Canvas::Wide { 6 } else { 3 }) else {
        let height = nothing(&mut out, canvas, top);
        return (out, height);
    };

    let longest = groups.iter().map(|g| text_width(g)).fold(0.0, f64::max);
    // Long names go above their bars, where the whole width is theirs.
    let beside = longest <= canvas.width() * 0.3;
    let number = shown().map(|b| text_width(&short(b.value))).fold(0.0, f64::max) + 8.0;
    let some_negative = shown().any(|b| b.value < 0.0);
    let left = if beside { longest + 12.0 } else { 2.0 } + if some_negative { number } else { 0.0 };
    let right = canvas.width() - number;
    let px = |value: f64| left + scale.place(value) * (right - left);

    let first = top;
    let group_height = series.len() as f64 * (BAR + BETWEEN) + if beside { 0.0 } else { LINE };
    let bottom = top + groups.len() as f64 * (group_height + 12.0);
    let mut drawn = String::new();
    for (g, group) in groups.iter().enumerate() {
        let mut y = top + 6.0;
        if beside {
            let middle = y + (group_height - BETWEEN) / 2.0 + 4.2;
            text(&mut drawn, 0.0, middle, "start", "fill:currentColor", group);
        } else {
            let name = fit(group, canvas.width());
            text(&mut drawn, 0.0, y + 12.0, "start", "fill:currentColor", &name);
            y += LINE;
        }
        for (i, s) in series.iter().enumerate() {
            one(&mut drawn, i, s.bars.get(g), y, &px);
            y += BAR + BETWEEN;
        }
        top += group_height + 12.0;
    }
    grid(&mut out, &scale, first, bottom, &px, canvas);
    out += &drawn;
    line(&mut out, (px(0.0), first), (px(0.0), bottom), AXIS);
    let name = fit(&axis_title(axis, &scale), canvas.width());
    text(&mut out, right, bottom + 2.0 * LINE, "end", MUTED, &name);
    (out, bottom + 2.0 * LINE + 8.0)
}

fn grid(out: &mut String, scale: &AxisScale, top: f64, bottom: f64, px: &dyn Fn(f64) -> f64, canvas: Canvas) {
    let mut free = f64::NEG_INFINITY;
    for tick in &scale.ticks {
        let x = px(tick.value);
        line(out, (x, top), (x, bottom), GRID);
        let half = text_width(&tick.label) / 2.0;
        let centre = x.clamp(half, (canvas.width() - half).max(half));
        if centre - half > free {
            text(out, centre, bottom + LINE, "middle", MUTED, &tick.label);
            free = centre + half + 6.0;
        }
    }
}

fn one(out: &mut String, series: usize, bar: Option<&Bar>, y: f64, px: &dyn Fn(f64) -> f64) {
    let base = y + BAR / 2.0 + FONT * 0.35;
    let Some(bar) = bar.filter(|b| drawable(b.value, Scale::Linear)) else {
        let style = format!("{MUTED};font-style:italic");
        text(out, px(0.0) + 6.0, base, "start", &style, "no value");
        return;
    };
    let (zero, end) = (px(0.0), px(bar.value));
    rect(out, series, zero.min(end), y, (end - zero).abs(), BAR);
    let mut outer = end;
    if let Some((low, high)) = bar.band() {
        let (low, high, middle) = (px(low), px(high), y + BAR / 2.0);
        let style = "stroke:currentColor;stroke-width:1.4";
        line(out, (low, middle), (high, middle), style);
        for x in [low, high] {
            line(out, (x, middle - 4.0), (x, middle + 4.0), style);
        }
        outer = if bar.value < 0.0 { low.min(end) } else { high.max(end) };
    }
    let (x, anchor) = if bar.value < 0.0 {
        (outer - 6.0, "end")
    } else {
        (outer + 6.0, "start")
    };
    text(out, x, base, anchor, "fill:currentColor", &short(bar.value));
}

fn rect(out: &mut String, series: usize, x: f64, y: f64, width: f64, height: f64) {
    let _ = write!(
        out,
        r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" rx="2" style="fill:{}"/>"#,
        colour(series)
    );
}
