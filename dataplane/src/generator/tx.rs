//! [`TxGenerator`]: fills bursts.

use super::frame::{FrameError, FrameSpec, HEAD, Template};
use super::{Flows, Probe, Replay};
use crate::{Burst, Mbuf, PoolCache};

/// What the next frame is made from.
enum Source {
    One(Template),
    /// The template, and the head of each flow's frames.
    Heads(Template, Box<[[u8; HEAD]]>),
    /// The templates, and the order they are sent in.
    Mix(Box<[Template]>, Box<[u16]>),
    Replay(Replay),
}

/// Flows whose heads are made in advance, at the most: 256 KiB, which stay in a core's own cache.
const MADE_IN_ADVANCE: u32 = 4096;

/// Makes frames: copies of templates, each with its flow's fields and its probe written over it.
///
/// Every frame is written in full, whatever its buffer held before, for a few nanoseconds: buffers come
/// from the core's own stock, last in, first out, and are still in its cache.
pub struct TxGenerator {
    source: Source,
    flows: Flows,
    flow: u32,
    stream: Option<u16>,
    /// Every frame has something written over its copy.
    patched: bool,
    /// Place in the mix or the file.
    at: usize,
    frames: u64,
    bytes: u64,
    mean_len: u32,
    room: u16,
}

impl Source {
    fn one(template: Template, flows: Flows, stream: Option<u16>) -> Self {
        let few = (2..=MADE_IN_ADVANCE).contains(&flows.count) && stream.is_none();
        match few.then(|| template.heads(flows)).flatten() {
            Some(heads) => Self::Heads(template, heads),
            None => Self::One(template),
        }
    }
}

impl TxGenerator {
    /// Frames of `mix`, over and over in that order, each of the next flow. With a `stream` they carry
    /// [`Probe`]s, numbered from 0.
    ///
    /// # Errors
    /// [`FrameError`]: a frame is too short for what it shall hold, or too long.
    pub fn new(mix: &[FrameSpec], flows: Flows, stream: Option<u16>) -> Result<Self, FrameError> {
        if !(1..=4096).contains(&mix.len()) {
            return Err(FrameError::Mix(mix.len()));
        }
        let mut specs: Vec<&FrameSpec> = Vec::new();
        let mut order = Vec::with_capacity(mix.len());
        for spec in mix {
            let known = specs.iter().position(|s| *s == spec);
            order.push(known.unwrap_or(specs.len()) as u16);
            if known.is_none() {
                specs.push(spec);
            }
        }
        let build = |spec: &&FrameSpec| Template::new(spec, flows, stream.is_some());
        let mut templates = specs.iter().map(build).collect::<Result<Vec<_>, _>>()?;
        let total: usize = mix.iter().map(|spec| usize::from(spec.len)).sum();
        let longest = templates.iter().map(|t| t.len).max().unwrap_or_default();
        let source = match templates.pop() {
            Some(only) if templates.is_empty() => Source::one(only, flows, stream),
            last => Source::Mix(templates.into_iter().chain(last).collect(), order.into()),
        };
        Ok(Self::over(source, flows, stream, (total / mix.len()) as u32, longest))
    }

    /// The frames of a capture file, over and over.
    pub fn replay(replay: Replay) -> Self {
        let (mean, longest) = (replay.mean_len(), replay.longest());
        Self::over(Source::Replay(replay), Flows::ONE, None, mean, longest)
    }

    fn over(source: Source, flows: Flows, stream: Option<u16>, mean_len: u32, room: u16) -> Self {
        let patched = stream.is_some() || flows.count > 1;
        Self { source, flows, flow: 0, stream, patched, at: 0, frames: 0, bytes: 0, mean_len, room }
    }

    /// Frames made so far; the next probe's sequence number.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// Bytes made so far, without FCS.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Mean length of its frames, bytes without FCS.
    pub fn mean_len(&self) -> u32 {
        self.mean_len
    }

    /// The room that its buffers must have at least, bytes.
    pub fn room(&self) -> u16 {
        self.room
    }

    /// The stream its probes are of.
    pub fn stream(&self) -> Option<u16> {
        self.stream
    }

    /// Appends `n` frames built at `now`, or as many as the burst takes and `pool` has buffers for;
    /// returns how many. None where the pool's buffers are smaller than [`TxGenerator::room`].
    #[inline]
    pub fn fill(&mut self, pool: &mut PoolCache, burst: &mut Burst, n: usize, now: u64) -> usize {
        let before = burst.len();
        let got = pool.take_burst(burst, n);
        let Some(frames) = burst.get_mut(before..) else { return 0 };
        if frames.first().is_some_and(|mbuf| mbuf.room() < self.room) {
            return Self::undo(pool, burst, got);
        }
        self.bytes += match &self.source {
            Source::One(template) if !self.patched => {
                frames.iter_mut().for_each(|mbuf| template.copy(mbuf));
                got as u64 * u64::from(template.len)
            }
            Source::Heads(template, heads) => {
                for mbuf in frames {
                    // There is a head for each flow, so the copy is never skipped.
                    let Some(head) = heads.get(self.flow as usize) else { continue };
                    template.copy_with(head, mbuf);
                    self.flow = self.flows.after(self.flow);
                }
                got as u64 * u64::from(template.len)
            }
            _ => self.make(frames, now),
        };
        self.frames += got as u64;
        got
    }

    /// Makes frames that differ; returns their bytes.
    // Apart, so that the code for frames that are all the same stays small.
    #[inline(never)]
    fn make(&mut self, frames: &mut [Mbuf], now: u64) -> u64 {
        let mut maker = Maker::new(self.flows, self.flow, self.stream, self.frames, now);
        let mut bytes = 0;
        match &self.source {
            Source::One(template) | Source::Heads(template, _) => {
                bytes = frames.len() as u64 * u64::from(template.len);
                frames.iter_mut().for_each(|mbuf| maker.make(mbuf, template));
            }
            Source::Mix(templates, order) => {
                for mbuf in frames {
                    let which = order.get(self.at).copied().unwrap_or_default();
                    self.at = if self.at + 1 >= order.len() { 0 } else { self.at + 1 };
                    let Some(template) = templates.get(usize::from(which)) else { continue };
                    bytes += u64::from(template.len);
                    if self.patched { maker.make(mbuf, template) } else { template.copy(mbuf) }
                }
            }
            Source::Replay(replay) => {
                for mbuf in frames {
                    bytes += replay.copy(self.at, mbuf);
                    self.at = if self.at + 1 >= replay.len() { 0 } else { self.at + 1 };
                }
            }
        }
        self.flow = maker.flow;
        bytes
    }

    /// Gives the last `n` buffers of `burst` back.
    #[cold]
    fn undo(pool: &mut PoolCache, burst: &mut Burst, n: usize) -> usize {
        for mut mbuf in (0..n).filter_map(|_| burst.pop()) {
            mbuf.reset();
            pool.give(mbuf);
        }
        0
    }
}

/// The flow, the sequence number and the time of the next frame.
struct Maker {
    flows: Flows,
    flow: u32,
    probe: Option<(u16, u64)>,
    now: u64,
}

impl Maker {
    #[inline(always)]
    fn new(flows: Flows, flow: u32, stream: Option<u16>, sequence: u64, now: u64) -> Self {
        Self { flows, flow, probe: stream.map(|stream| (stream, sequence)), now }
    }

    #[inline(always)]
    fn make(&mut self, mbuf: &mut Mbuf, template: &Template) {
        template.copy(mbuf);
        let probe = self.probe.map(|(stream, sequence)| Probe::new(stream, sequence, self.now));
        template.patch(mbuf.data_mut(), self.flows.vary, self.flow, probe.as_ref());
        self.flow = self.flows.after(self.flow);
        if let Some((_, sequence)) = &mut self.probe {
            *sequence += 1;
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
