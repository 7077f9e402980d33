//! What is shown while it runs: a table redrawn in place on a terminal, a line a second elsewhere.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::time::Duration;

use becket::dataplane::generator::VerifierCounters;
use serde_json::json;

use crate::args::{Args, Json};
use crate::stats::{Moment, Speed, Watched, all_drops, drops, named};

enum Style {
    Table,
    Lines,
    Json,
    Nothing,
}

/// Where progress is shown.
pub struct Progress {
    style: Style,
    names: Vec<String>,
    /// Lines to go up before the next table.
    height: usize,
    last: Moment,
    start: Moment,
}

impl Progress {
    pub fn new(args: &Args, names: Vec<String>, start: Moment) -> Self {
        let style = match args.json {
            Some(Json::Lines) => Style::Json,
            Some(Json::End) => Style::Nothing,
            None if std::io::stdout().is_terminal() => Style::Table,
            None => Style::Lines,
        };
        Self { style, names, height: 0, last: start.clone(), start }
    }

    /// Shows how it stands.
    pub fn show(&mut self, watched: &[Watched]) {
        let now = Moment::now(watched);
        let elapsed = now.at.duration_since(self.start.at);
        let text = match self.style {
            Style::Table => self.table(watched, &now, elapsed),
            Style::Lines => self.line(watched, &now, elapsed),
            Style::Json => self.json(watched, &now, elapsed),
            Style::Nothing => return,
        };
        self.last = now;
        let mut out = std::io::stdout().lock();
        // A reader that went away is no reason to leave a device running: the end comes all the same.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }

    fn table(&mut self, watched: &[Watched], now: &Moment, elapsed: Duration) -> String {
        let mut text = String::new();
        if self.height > 0 {
            let _ = write!(text, "\x1b[{}A\x1b[J", self.height);
        }
        let from = text.len();
        let _ = writeln!(
            text,
            "{:>7.1} s {:>21} {:>21}  drops\n{:<22} {:>10} {:>8} {:>12} {:>8}",
            elapsed.as_secs_f64(),
            "received",
            "sent",
            "port, queue",
            "Mpps",
            "Gbit/s",
            "Mpps",
            "Gbit/s"
        );
        let (total, lanes) = now.speeds(&self.last);
        for (w, speed) in watched.iter().zip(&lanes) {
            let (from, to, queue) = w.place;
            let name = if from == to {
                format!("{} {queue}", self.names[from])
            } else {
                format!("{}>{} {queue}", self.names[from], self.names[to])
            };
            row(&mut text, &name, *speed, &drops([&w.rx, &w.tx].into_iter().chain(&w.taps)));
        }
        if watched.len() > 1 {
            row(&mut text, "all", total, &all_drops(watched));
        }
        if let Some(line) = verified(watched) {
            let _ = writeln!(text, "{line}");
        }
        self.height = text[from..].lines().count();
        text
    }

    fn line(&self, watched: &[Watched], now: &Moment, elapsed: Duration) -> String {
        let ((rx, tx), _) = now.speeds(&self.last);
        let drops = named(&all_drops(watched));
        let verified = verified(watched).map(|line| format!("; {line}")).unwrap_or_default();
        format!(
            "{:.1} s: received {:.3} Mpps {:.3} Gbit/s, sent {:.3} Mpps {:.3} Gbit/s; drops: {drops}{verified}\n",
            elapsed.as_secs_f64(),
            rx.mpps,
            rx.gbps,
            tx.mpps,
            tx.gbps
        )
    }

    fn json(&self, watched: &[Watched], now: &Moment, elapsed: Duration) -> String {
        let ((rx, tx), lanes) = now.speeds(&self.last);
        let queues: Vec<_> = watched
            .iter()
            .zip(lanes)
            .map(|(w, (rx, tx))| {
                let (from, to, queue) = w.place;
                json!({"rx_port": self.names[from], "tx_port": self.names[to], "queue": queue, "rx": rx, "tx": tx})
            })
            .collect();
        let drops: serde_json::Map<_, _> =
            all_drops(watched).into_iter().map(|(name, n)| (name.to_owned(), n.into())).collect();
        let seconds = elapsed.as_secs_f64();
        json!({"event": "second", "seconds": seconds, "rx": rx, "tx": tx, "drops": drops, "queues": queues})
            .to_string()
            + "\n"
    }
}

fn row(text: &mut String, name: &str, (rx, tx): (Speed, Speed), drops: &[(&str, u64)]) {
    let _ = writeln!(
        text,
        "{name:<22} {:>10.3} {:>8.3} {:>12.3} {:>8.3}  {}",
        rx.mpps,
        rx.gbps,
        tx.mpps,
        tx.gbps,
        named(drops)
    );
}

/// What the verifiers have seen, where there are any.
fn verified(watched: &[Watched]) -> Option<String> {
    let all: Vec<&VerifierCounters> = watched.iter().filter_map(|w| w.verifier.as_deref()).collect();
    if all.is_empty() {
        return None;
    }
    let sum = |get: fn(&VerifierCounters) -> u64| all.iter().map(|v| get(v)).sum::<u64>();
    Some(format!(
        "verified {}, duplicates {}, reordered {}, stale {}, corrupt {}, foreign {}",
        sum(|v| v.unique.get()),
        sum(|v| v.duplicates.get()),
        sum(|v| v.reordered.get()),
        sum(|v| v.stale.get()),
        sum(|v| v.corrupt.get()),
        sum(|v| v.foreign.get())
    ))
}
