//! Progress bars on standard error; silent where that is no terminal.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};

use coracle_images::Progress;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::error::note;
use crate::engine::run::Notes;
use crate::report::one_line;

/// Redraws a second: enough to look alive, little enough to cost nothing.
const REDRAWS_HZ: u8 = 10;

/// Is one bar for each piece of work; drawn only while there is work.
pub struct Bars {
    /// Made when the first work begins: a run of an image that is here pays nothing.
    drawing: Mutex<Option<Drawing>>,
    wanted: bool,
}

struct Drawing {
    all: MultiProgress,
    bars: HashMap<String, ProgressBar>,
}

impl Bars {
    /// Makes bars that appear on a terminal.
    pub fn new() -> Self {
        Self { drawing: Mutex::new(None), wanted: std::io::stderr().is_terminal() }
    }

    /// Makes bars that never appear.
    pub fn quiet() -> Self {
        Self { drawing: Mutex::new(None), wanted: false }
    }

    fn with(&self, act: impl FnOnce(&mut Drawing)) {
        if self.wanted {
            let mut drawing = self.drawing.lock().unwrap_or_else(PoisonError::into_inner);
            act(drawing.get_or_insert_with(Drawing::new));
        }
    }
}

impl Drawing {
    fn new() -> Self {
        let target = ProgressDrawTarget::stderr_with_hz(REDRAWS_HZ);
        Self { all: MultiProgress::with_draw_target(target), bars: HashMap::new() }
    }
}

impl Progress for Bars {
    fn begin(&self, what: &str, total_bytes: u64) {
        self.with(|drawing| {
            let template = "{prefix:>14} {msg:12} {bar:30} {bytes:>10} / {total_bytes}";
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = drawing.all.add(ProgressBar::new(total_bytes).with_style(style));
            bar.set_prefix(one_line(what));
            drawing.bars.insert(what.to_owned(), bar);
        });
    }

    fn advance(&self, what: &str, bytes: u64) {
        self.with(|drawing| {
            if let Some(bar) = drawing.bars.get(what) {
                bar.inc(bytes);
            }
        });
    }

    fn phase(&self, what: &str, text: &str) {
        self.with(|drawing| {
            if let Some(bar) = drawing.bars.get(what) {
                bar.set_message(one_line(text));
            }
        });
    }

    fn finish(&self, what: &str, _text: &str) {
        self.with(|drawing| {
            if let Some(bar) = drawing.bars.remove(what) {
                bar.finish_and_clear();
            }
        });
    }
}

impl Notes for Bars {
    fn note(&self, text: &str) {
        note(&format!("note: {}", one_line(text)));
    }
}
