//! [`Window`]: which of a stream's frames have come; [`StreamReport`]: what that adds up to.

/// Sequence numbers that a frame may be late by and still be told from a duplicate.
pub(super) const WINDOW: u64 = 4096;
const WORDS: u64 = WINDOW / 64;

/// Further ahead than any stream gets at once: at 200 million frames a second, an hour and a half.
const LEAP: u64 = 1 << 40;

/// What came of one stream.
///
/// `unique + duplicates + stale` frames were received. A frame is lost that was sent and never came:
/// [`StreamReport::lost`]. It is exact while `stale` is 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StreamReport {
    /// Frames that came for the first time.
    pub unique: u64,
    /// Frames that had come before.
    pub duplicates: u64,
    /// Of the unique: frames that came after a later one.
    pub reordered: u64,
    /// Frames so late (4,096 numbers or more) that first and second cannot be told apart.
    pub stale: u64,
    /// The largest sequence number seen, plus 1.
    pub next: u64,
}

impl StreamReport {
    /// Frames that did not come of `sent`.
    pub fn lost(&self, sent: u64) -> u64 {
        sent.saturating_sub(self.unique)
    }

    /// Frames missing before the last that came. Where nobody knows how many were sent.
    pub fn missing(&self) -> u64 {
        self.lost(self.next)
    }

    /// Both together: one stream's frames that came on two queues.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        Self {
            unique: self.unique + other.unique,
            duplicates: self.duplicates + other.duplicates,
            reordered: self.reordered + other.reordered,
            stale: self.stale + other.stale,
            next: self.next.max(other.next),
        }
    }
}

/// One bit for each of the last sequence numbers, in a ring of words.
#[derive(Clone)]
pub(super) struct Window {
    pub(super) report: StreamReport,
    seen: [u64; WORDS as usize],
}

impl Default for Window {
    fn default() -> Self {
        Self { report: StreamReport::default(), seen: [0; WORDS as usize] }
    }
}

impl Window {
    /// A frame of that number came. False, and nothing counted, where the number makes no sense.
    #[inline]
    pub(super) fn record(&mut self, sequence: u64) -> bool {
        let next = self.report.next;
        let (word, newest) = (sequence / 64, next.saturating_sub(1) / 64);
        if sequence >= next {
            if sequence - next >= LEAP {
                return false;
            }
            if word > newest {
                self.advance(newest, word);
            }
            self.report.next = sequence + 1;
            self.report.unique += 1;
            *self.word(word) |= 1 << (sequence % 64);
            return true;
        }
        if word + WORDS <= newest {
            self.report.stale += 1;
            return true;
        }
        let bit = 1 << (sequence % 64);
        let seen = self.word(word);
        if *seen & bit != 0 {
            self.report.duplicates += 1;
        } else {
            *seen |= bit;
            self.report.unique += 1;
            self.report.reordered += 1;
        }
        true
    }

    #[inline]
    fn word(&mut self, word: u64) -> &mut u64 {
        &mut self.seen[(word % WORDS) as usize]
    }

    /// Clears the words after `newest` up to `word`.
    #[inline]
    fn advance(&mut self, newest: u64, word: u64) {
        for step in 1..=(word - newest).min(WORDS) {
            *self.word(newest + step) = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    /// The definition, with all of the past in memory.
    #[derive(Default)]
    struct Reference {
        seen: HashSet<u64>,
        report: StreamReport,
    }

    impl Reference {
        fn record(&mut self, sequence: u64) {
            let report = &mut self.report;
            let newest = report.next.saturating_sub(1) / 64;
            if sequence / 64 + WORDS <= newest {
                report.stale += 1;
            } else if !self.seen.insert(sequence) {
                report.duplicates += 1;
            } else {
                report.unique += 1;
                report.reordered += u64::from(sequence < report.next);
            }
            report.next = report.next.max(sequence + 1);
        }
    }

    /// What a bad wire makes of a stream: each frame lost, doubled, held back, or sent on.
    fn wire(fates: &[(u8, u16)]) -> Vec<u64> {
        let mut arrivals: Vec<(u64, u64)> = Vec::new();
        for (sequence, &(fate, delay)) in (0u64..).zip(fates) {
            let late = sequence * 10 + u64::from(delay);
            match fate % 10 {
                0 => {}
                1 => arrivals.extend([(sequence * 10, sequence), (late + 1, sequence)]),
                2 => arrivals.push((late, sequence)),
                _ => arrivals.push((sequence * 10, sequence)),
            }
        }
        arrivals.sort_unstable();
        arrivals.into_iter().map(|(_, sequence)| sequence).collect()
    }

    proptest! {
        #[test]
        fn as_the_definition_says(fates in prop::collection::vec((any::<u8>(), any::<u16>()), 1..9000), start in 0u64..1 << 38) {
            let (mut window, mut reference) = (Window::default(), Reference::default());
            for sequence in wire(&fates) {
                prop_assert!(window.record(start + sequence));
                reference.record(start + sequence);
            }
            prop_assert_eq!(window.report, reference.report);
        }

        #[test]
        fn without_stale_frames_every_frame_is_accounted_for(fates in prop::collection::vec((any::<u8>(), 0u16..20_000), 1..6000)) {
            let arrivals = wire(&fates);
            let mut window = Window::default();
            for &sequence in &arrivals {
                window.record(sequence);
            }
            let (report, sent) = (window.report, fates.len() as u64);
            prop_assert_eq!(report.stale, 0);
            let came: HashSet<_> = arrivals.iter().collect();
            prop_assert_eq!(report.unique, came.len() as u64);
            prop_assert_eq!(report.lost(sent), fates.iter().filter(|(fate, _)| fate % 10 == 0).count() as u64);
            prop_assert_eq!(report.unique + report.duplicates, arrivals.len() as u64);
            prop_assert_eq!(report.unique + report.lost(sent), sent);
        }

        /// A stream spread over queues: the parts add up to the whole.
        #[test]
        fn parts_of_a_stream_add_up(queues in prop::collection::vec(0usize..4, 1..5000)) {
            let mut windows = vec![Window::default(); 4];
            for (sequence, &queue) in (0u64..).zip(&queues) {
                windows[queue].record(sequence);
            }
            let sum = windows.iter().fold(StreamReport::default(), |sum, w| sum.merge(w.report));
            let sent = queues.len() as u64;
            let expected = StreamReport { unique: sent, next: sent, ..StreamReport::default() };
            prop_assert_eq!(sum, expected);
        }
    }

    #[test]
    fn a_leap_is_refused_and_leaves_the_stream_as_it_was() {
        let mut window = Window::default();
        assert!(window.record(5) && !window.record(u64::MAX) && !window.record(LEAP + 6));
        assert!(window.record(6));
        assert_eq!((window.report.unique, window.report.missing()), (2, 5));
    }
}
