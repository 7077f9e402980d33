//! The table, the JSON and the plot.

use std::fmt::Write;
use std::path::Path;

use serde::Serialize;

use crate::Case;
use crate::instructions::Instructions;

/// One case's outcome. Rates in packets a second.
#[derive(Serialize)]
struct Row {
    work: &'static str,
    burst: usize,
    ours: f64,
    dpdk: f64,
    /// Median of the pairs' ratios, ours to DPDK's, and the quartiles around it.
    ratio: f64,
    quartiles: (f64, f64),
    instructions: Option<(f64, f64)>,
}

/// All cases, printed as they come in.
#[derive(Serialize)]
pub struct Report {
    name: &'static str,
    machine: String,
    dpdk: String,
    pairs: usize,
    slice_ms: u64,
    rows: Vec<Row>,
}

impl Report {
    /// Prints the table's head.
    pub fn new(name: &'static str, pairs: usize, slice_ms: u64) -> Self {
        let (machine, dpdk) = (machine(), crate::testpmd::version());
        println!("{machine}; DPDK {dpdk}; {name}; {pairs} pairs of {slice_ms} ms a case, one core, 64 B\n");
        println!("work     burst  Becket Mpps  DPDK Mpps  ratio (quartiles)     instructions a packet");
        Self { name, machine, dpdk, pairs, slice_ms, rows: Vec::new() }
    }

    /// Adds a case and prints its line.
    pub fn add(&mut self, case: Case, pairs: &[(f64, f64)], instructions: Option<Instructions>) {
        let ratios = sorted(pairs.iter().map(|&(ours, theirs)| ours / theirs));
        let row = Row {
            work: case.work.name(),
            burst: case.burst,
            ours: quantile(&sorted(pairs.iter().map(|p| p.0)), 0.5),
            dpdk: quantile(&sorted(pairs.iter().map(|p| p.1)), 0.5),
            ratio: quantile(&ratios, 0.5),
            quartiles: (quantile(&ratios, 0.25), quantile(&ratios, 0.75)),
            instructions: instructions.map(|i| (i.ours, i.theirs)),
        };
        let count = row.instructions.map_or("-".to_owned(), |(a, b)| format!("{a:.1} : {b:.1}"));
        println!(
            "{:<8} {:>5} {:>12.2} {:>10.2}  {:>5.2} ({:.2} to {:.2})   {count}",
            row.work,
            row.burst,
            row.ours / 1e6,
            row.dpdk / 1e6,
            row.ratio,
            row.quartiles.0,
            row.quartiles.1
        );
        self.rows.push(row);
    }

    /// Writes `NAME.json` and `NAME.svg` into `folder`.
    pub fn write(&self, folder: &Path) -> Result<(), Box<dyn std::error::Error>> {
        std::fs::create_dir_all(folder)?;
        std::fs::write(folder.join(self.name).with_extension("json"), serde_json::to_string_pretty(self)?)?;
        std::fs::write(folder.join(self.name).with_extension("svg"), self.plot())?;
        println!("\nwritten: {0}/{1}.json, {0}/{1}.svg", folder.display(), self.name);
        Ok(())
    }

    /// A bar a case: the ratio, with its quartiles, and a line at 1.
    fn plot(&self) -> String {
        const SCALE: f64 = 60.0;
        let height = 60 + 22 * self.rows.len();
        let mut svg = format!(
            "<svg xmlns='http://www.w3.org/2000/svg' width='720' height='{height}' font-family='sans-serif' font-size='12'>\n\
             <rect width='100%' height='100%' fill='white'/>\n\
             <text x='10' y='20' font-size='14'>Becket's packets a second to DPDK's, same work, one core (line: equal)</text>\n\
             <text x='10' y='38' fill='#666'>{}; DPDK {}; median of {} pairs and quartiles</text>\n",
            self.machine, self.dpdk, self.pairs
        );
        for (n, row) in self.rows.iter().enumerate() {
            let y = 52 + 22 * n;
            let _ = writeln!(
                svg,
                "<text x='10' y='{ty}'>{} {}</text><rect x='110' y='{y}' width='{w:.1}' height='14' fill='#3b7dd8'/>\
                 <line x1='{a:.1}' x2='{b:.1}' y1='{m}' y2='{m}' stroke='black'/>\
                 <text x='{tx:.1}' y='{ty}'>{r:.2}</text>",
                row.work,
                row.burst,
                ty = y + 12,
                w = row.ratio * SCALE,
                a = 110.0 + row.quartiles.0 * SCALE,
                b = 110.0 + row.quartiles.1 * SCALE,
                m = y + 7,
                tx = 116.0 + row.quartiles.1.max(row.ratio) * SCALE,
                r = row.ratio,
            );
        }
        let _ = writeln!(
            svg,
            "<line x1='{x}' x2='{x}' y1='46' y2='{height}' stroke='#c00' stroke-dasharray='4'/>\n</svg>",
            x = 110.0 + SCALE
        );
        svg
    }
}

fn machine() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    model.map_or("unknown CPU".to_owned(), |(_, name)| name.trim().to_owned())
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// Linear between the neighbours; 0 for no values.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * sorted.len().saturating_sub(1) as f64;
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    match (sorted.get(low), sorted.get(high)) {
        (Some(a), Some(b)) => a + (b - a) * at.fract(),
        _ => 0.0,
    }
}
