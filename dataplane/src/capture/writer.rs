//! [`Capture`]: the file, and the thread that writes it.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rtrb::{Consumer, RingBuffer};

use super::Direction;
use super::pcapng::{self, Frame};
use super::record::{HEADER, Record};
use super::tap::Tap;
use crate::generator::Clock;

/// What to keep of frames, and how much may wait to be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CaptureConfig {
    /// Bytes kept of a frame at the most.
    pub snap: u16,
    /// Bytes of each tap's ring. A record takes 16 bytes more than it keeps.
    pub ring: usize,
}

impl Default for CaptureConfig {
    /// Whole frames; 4 MiB a tap.
    fn default() -> Self {
        Self { snap: u16::MAX, ring: 4 << 20 }
    }
}

/// What can go wrong with a capture.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaptureError {
    /// The file cannot be made or written.
    #[error("capture file '{path}': {what}: {source}; what came before is in the file")]
    File {
        /// The file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// No thread to write it.
    #[error("capture file '{path}': no thread to write it: {source}")]
    Thread {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The thread that writes it has died.
    #[error("capture file '{path}': its writer panicked; the file is incomplete")]
    Died {
        /// The file.
        path: PathBuf,
    },
}

/// What a capture has written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CaptureSummary {
    /// Frames.
    pub frames: u64,
    /// Their bytes, as kept.
    pub bytes: u64,
}

/// An interface of the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interface(u32);

/// The far end of a tap.
struct Source {
    ring: Consumer<u8>,
    interface: Interface,
    direction: Direction,
    /// The next record, where its header has been read.
    next: Option<Record>,
}

/// A capture in preparation: interfaces and taps are added, then it starts.
pub struct Capture {
    path: PathBuf,
    config: CaptureConfig,
    clock: Clock,
    names: Vec<String>,
    sources: Vec<Source>,
}

impl Capture {
    /// A capture to `path`. Nothing is written before [`Capture::start`].
    pub fn new(path: impl AsRef<Path>, config: CaptureConfig) -> Self {
        let path = path.as_ref().to_owned();
        Self { path, config, clock: Clock::get(), names: Vec::new(), sources: Vec::new() }
    }

    /// One more interface, of that name.
    pub fn interface(&mut self, name: impl Into<String>) -> Interface {
        self.names.push(name.into());
        Interface(self.names.len() as u32 - 1)
    }

    /// A tap for the frames that an interface receives.
    pub fn received(&mut self, interface: Interface) -> Tap {
        self.tap(interface, Direction::Received)
    }

    /// A tap for the frames that an interface sends.
    pub fn sent(&mut self, interface: Interface) -> Tap {
        self.tap(interface, Direction::Sent)
    }

    fn tap(&mut self, interface: Interface, direction: Direction) -> Tap {
        let least = HEADER + usize::from(self.config.snap);
        let (producer, ring) = RingBuffer::new(self.config.ring.max(least));
        self.sources.push(Source { ring, interface, direction, next: None });
        Tap::new(producer, self.config.snap.into(), self.clock)
    }

    /// Creates the file and starts writing.
    ///
    /// # Errors
    /// [`CaptureError`]: the file cannot be made, or there is no thread to write it.
    pub fn start(self) -> Result<Running, CaptureError> {
        let Self { path, config, clock, names, sources } = self;
        let failed = |what| {
            let path = path.clone();
            move |source| CaptureError::File { path, what, source }
        };
        let mut out =
            BufWriter::with_capacity(1 << 18, File::create(&path).map_err(failed("cannot create"))?);
        pcapng::write_header(&mut out, &names, config.snap.into()).map_err(failed("cannot write"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let writer = Writer {
            out,
            sources,
            clock,
            start: (clock.now(), since_1970.as_nanos() as u64),
            buffer: Vec::new(),
            summary: CaptureSummary::default(),
        };
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("capture".to_owned())
            .spawn(move || writer.run(&stopped))
            .map_err(|source| CaptureError::Thread { path: path.clone(), source })?;
        Ok(Running { path, stop, thread: Some(thread) })
    }
}

/// A running capture. Dropping it closes it too, but tells nobody what went wrong.
pub struct Running {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<CaptureSummary>>>,
}

impl Running {
    /// Writes what the taps have copied so far, and closes the file.
    ///
    /// # Errors
    /// [`CaptureError`]: what could not be written, now or while it ran.
    pub fn close(mut self) -> Result<CaptureSummary, CaptureError> {
        self.stop.store(true, Ordering::Release);
        let path = std::mem::take(&mut self.path);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(Ok(summary))) => Ok(summary),
            Some(Ok(Err(source))) => Err(CaptureError::File { path, what: "cannot write", source }),
            Some(Err(_)) | None => Err(CaptureError::Died { path }),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// How long the writer sleeps when nothing is there: a ring of 4 MiB holds more than comes meanwhile at
/// 10 Gbit/s.
const NAP: Duration = Duration::from_millis(1);

struct Writer {
    out: BufWriter<File>,
    sources: Vec<Source>,
    clock: Clock,
    /// The same moment by the clock and in nanoseconds since 1970.
    start: (u64, u64),
    /// For records that lie across the end of their ring.
    buffer: Vec<u8>,
    summary: CaptureSummary,
}

impl Writer {
    fn run(mut self, stop: &AtomicBool) -> io::Result<CaptureSummary> {
        loop {
            // Looked at first: what was copied before the stop is then written by this very round.
            let last = stop.load(Ordering::Acquire);
            while self.write_oldest()? {}
            if last {
                self.out.flush()?;
                return Ok(self.summary);
            }
            std::thread::sleep(NAP);
        }
    }

    /// Writes the oldest frame of all rings; false where there is none.
    fn write_oldest(&mut self) -> io::Result<bool> {
        let mut oldest: Option<(usize, u64)> = None;
        for (at, source) in self.sources.iter_mut().enumerate() {
            let Some(ticks) = source.peek() else { continue };
            if oldest.is_none_or(|(_, best)| ticks < best) {
                oldest = Some((at, ticks));
            }
        }
        let Some((at, _)) = oldest else { return Ok(false) };
        self.write(at)?;
        Ok(true)
    }

    fn write(&mut self, at: usize) -> io::Result<()> {
        let source = &mut self.sources[at];
        let Some(record) = source.next.take() else { return Ok(()) };
        let kept = record.kept as usize;
        // Header and bytes were handed over together.
        let Ok(chunk) = source.ring.read_chunk(kept) else { return Ok(()) };
        let data = match chunk.as_slices() {
            (all, []) => all,
            (first, second) => {
                self.buffer.clear();
                self.buffer.extend_from_slice(first);
                self.buffer.extend_from_slice(second);
                &self.buffer
            }
        };
        let (ticks, nanos) = self.start;
        let since = record.ticks.wrapping_sub(ticks) as i64;
        let passed = self.clock.nanos(since.unsigned_abs());
        let nanos = if since < 0 { nanos.wrapping_sub(passed) } else { nanos.wrapping_add(passed) };
        let frame = Frame {
            interface: source.interface.0,
            direction: source.direction,
            nanos,
            len: record.len,
            data,
        };
        pcapng::write_packet(&mut self.out, &frame)?;
        chunk.commit_all();
        self.summary.frames += 1;
        self.summary.bytes += kept as u64;
        Ok(())
    }
}

impl Source {
    /// When the ring's next frame was captured.
    fn peek(&mut self) -> Option<u64> {
        if self.next.is_none() {
            let mut header = [0; HEADER];
            self.ring.pop_entire_slice(&mut header).ok()?;
            self.next = Some(Record::from_bytes(header));
        }
        self.next.as_ref().map(|record| record.ticks)
    }
}
