//! The other half of receiving: everything but good frames in one buffer.
#![allow(unsafe_code)]

use dataplane::{Drop as Reason, Mbuf, PoolCache};

use super::{IgbRx, Place};
use crate::igb::hw::rx_desc::{Completion, END_OF_PACKET, LOOPED_BACK, RECEIVE_ERROR};

impl IgbRx {
    /// What is not a good frame in one buffer: parts of larger frames, errors, nonsense, and whatever
    /// comes while the pool is empty. Gives the frame that this descriptor completes, if it does.
    #[inline(never)]
    fn irregular(&mut self, index: u32, completion: Completion, pool: &mut PoolCache) -> Option<Mbuf> {
        let ended = completion.has(END_OF_PACKET);
        let part = match self.place {
            Place::Dropped => Err(None),
            _ => self.check(completion, ended).map_err(Some),
        };
        let part = part.and_then(|()| match self.fresh(pool) {
            Some(fresh) => Ok(self.exchange(index, Some(fresh))),
            None => {
                self.counters.pool_empty.add(1);
                Err(Some(Reason::NoBuffer))
            }
        });
        match part {
            Ok(part) => {
                self.extend(part?, completion.len());
                self.place = if ended { Place::Start } else { Place::Middle };
                ended.then(|| self.chain.take()).flatten()
            }
            Err(reason) => {
                self.exchange(index, None);
                if let Some(reason) = reason {
                    self.counters.drop_frames(reason, 1);
                }
                self.chain.take().into_iter().for_each(|chain| pool.give(chain));
                self.place = if ended { Place::Start } else { Place::Dropped };
                None
            }
        }
    }

    /// Whether a descriptor can be the next part of the frame.
    fn check(&self, completion: Completion, ended: bool) -> std::result::Result<(), Reason> {
        let (bytes, segments) = self.chain.as_ref().map_or((0, 0), |m| (m.frame_len(), m.segments()));
        // Errors are valid with the end of the packet only (7.1.5.2).
        if ended && completion.has(RECEIVE_ERROR) {
            return Err(Reason::DeviceError);
        }
        if completion.is_empty() || completion.len() > self.buffer_len {
            return Err(Reason::BadCompletion);
        }
        // A frame of which this is not the end needs one more.
        if segments + 1 + u16::from(!ended) > self.max_segments {
            return Err(Reason::TooManySegments);
        }
        if bytes + u32::from(completion.len()) > self.config.max_frame {
            return Err(Reason::BadCompletion);
        }
        Ok(())
    }

    fn extend(&mut self, mut part: Mbuf, len: u16) {
        part.received(len);
        match &mut self.chain {
            Some(frame) => frame.chain(part),
            None => self.chain = Some(part),
        }
    }

    /// Gives a buffer to the device in exchange for the one that slot `index` has done with: `fresh`, or
    /// that same one again. It goes to the slot behind what the device owns, which is the same slot
    /// while every slot has a buffer, and the first of the gap otherwise.
    fn exchange(&mut self, index: u32, fresh: Option<Mbuf>) -> Option<Mbuf> {
        let target = self.ring.before(index, self.gap);
        let old = self.slots[index as usize].take();
        let (posted, out) = if fresh.is_some() { (fresh, old) } else { (old, None) };
        let iova = posted.as_ref().map_or(0, Mbuf::receive_iova);
        // SAFETY: `index` is that of a slot, and so is what comes before it.
        unsafe {
            self.ring.write(index, 0, 0);
            self.ring.write(target, iova, 0);
        }
        self.slots[target as usize] = posted;
        out
    }

    /// [`IgbRx::irregular`], described.
    pub(super) fn assemble(
        &mut self,
        index: u32,
        completion: Completion,
        word0: u64,
        pool: &mut PoolCache,
    ) -> Option<Mbuf> {
        let mut frame = self.irregular(index, completion, pool)?;
        self.describe(&mut frame, completion, word0);
        if completion.status() & self.unusual & LOOPED_BACK != 0 {
            let (flags, hash, vlan) = (frame.rx_flags(), frame.rss_hash(), frame.vlan());
            frame.set_rx(flags, hash, vlan.swap_bytes(), self.port);
        }
        Some(frame)
    }
}
