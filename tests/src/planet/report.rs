//! Outcomes as a table and as a plot.

use std::fmt::Write as _;

use super::{
    outcome::{Outcome, Source},
    plan::Strategy,
};

/// The table, in Markdown, of runs in whatever order.
pub fn table(outcomes: &[Outcome]) -> String {
    let mut text = String::from(
        "| nodes | objects found by | first byte, ms: mean | p50 | p95 | p99 | p99.9 | last byte, ms: mean | p99 | origin requests per object | bytes from store / peer / home / origin, % | busiest sender / mean | digests per node: kB/s (most) | MB (most) | false hits, misses | timeouts |\n",
    );
    text.push_str(&"|---".repeat(16));
    text.push_str("|\n");
    for outcome in outcomes {
        let (first, last) = (outcome.first(), outcome.last());
        let share = |source| 100.0 * outcome.share(source);
        let (rate, rate_most) = outcome.digest_rate();
        let (memory, memory_most) = outcome.digest_memory();
        let (kb, mb) = (1e3, 1e6);
        let _ = writeln!(
            text,
            "| {} | {} | {:.1} | {:.1} | {:.1} | {:.0} | {:.0} | {:.1} | {:.0} | {:.2} | {:.0} / {:.0} / {:.0} / {:.0} | {:.1} | {:.2} ({:.2}) | {:.2} ({:.2}) | {}, {} | {} |",
            outcome.nodes,
            outcome.strategy.name(),
            first.mean,
            first.p50,
            first.p95,
            first.p99,
            first.p999,
            last.mean,
            last.p99,
            outcome.origin_per_object(),
            share(Source::Store),
            share(Source::Peer),
            share(Source::Home),
            share(Source::Origin),
            outcome.load_spread(),
            rate / kb,
            rate_most / kb,
            memory / mb,
            memory_most / mb,
            outcome.false_hits,
            outcome.false_misses,
            outcome.timeouts,
        );
    }
    text
}

const PANEL: (f64, f64) = (300.0, 220.0);
const MARGIN: (f64, f64) = (50.0, 60.0);
const COLOURS: [&str; 4] = ["#b8b8b8", "#d9a441", "#5b9bd5", "#1d6b45"];

/// What a panel shows of an outcome.
type Value = fn(&Outcome) -> f64;

/// Three panels of bars by number of nodes, as SVG.
pub fn plot(outcomes: &[Outcome]) -> String {
    let panels: [(&str, Value); 3] = [
        ("time to first byte, mean, ms", |o| o.first().mean),
        ("time to first byte, p99, ms", |o| o.first().p99),
        (
            "origin requests per object, log",
            Outcome::origin_per_object,
        ),
    ];
    let (width, height) = (PANEL.0 + MARGIN.0, PANEL.1 + MARGIN.1 + 30.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        width * panels.len() as f64 + MARGIN.0,
    );
    let mut sizes: Vec<usize> = outcomes.iter().map(|o| o.nodes).collect();
    sizes.sort_unstable();
    sizes.dedup();
    for (i, (title, value)) in panels.into_iter().enumerate() {
        let left = MARGIN.0 + width * i as f64;
        let log = title.ends_with("log");
        let scale = |v: f64| if log { (v.max(0.5) / 0.5).ln() } else { v };
        let most = outcomes.iter().map(value).map(scale).fold(1e-9, f64::max);
        let _ = writeln!(
            svg,
            "<text x=\"{left}\" y=\"24\" font-size=\"13\">{title}</text>"
        );
        let group = PANEL.0 / sizes.len() as f64;
        let bar = group * 0.8 / Strategy::ALL.len() as f64;
        let floor = MARGIN.1 + PANEL.1 - 20.0;
        for (g, size) in sizes.iter().enumerate() {
            for (s, strategy) in Strategy::ALL.into_iter().enumerate() {
                let of = |o: &&Outcome| o.nodes == *size && o.strategy == strategy;
                let Some(value) = outcomes.iter().find(of).map(value) else {
                    continue;
                };
                let tall = (PANEL.1 - 40.0) * scale(value) / most;
                let (x, y) = (left + group * g as f64 + bar * s as f64, floor - tall);
                let digits = usize::from(value < 10.0);
                let _ = writeln!(
                    svg,
                    "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{tall:.1}\" fill=\"{}\"/>\n<text x=\"{:.1}\" y=\"{:.1}\" font-size=\"7\" text-anchor=\"middle\">{value:.digits$}</text>",
                    bar * 0.9,
                    COLOURS[s],
                    x + bar * 0.45,
                    y - 2.0,
                );
            }
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{size} nodes</text>",
                left + group * (g as f64 + 0.4),
                floor + 14.0,
            );
        }
    }
    for (s, strategy) in Strategy::ALL.into_iter().enumerate() {
        let x = MARGIN.0 + 170.0 * s as f64;
        let y = height - 14.0;
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"{}\" width=\"10\" height=\"10\" fill=\"{}\"/>\n<text x=\"{}\" y=\"{y}\">{}</text>",
            y - 9.0,
            COLOURS[s],
            x + 15.0,
            strategy.name(),
        );
    }
    svg.push_str("</svg>\n");
    svg
}
