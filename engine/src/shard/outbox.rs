//! What waits to be written to one link: a bounded queue of shared frames. It decides what the next write is; it does not write.

use std::collections::VecDeque;
use std::rc::Rc;

use crate::frame::Frame;
use crate::limits::{COALESCE_FRAME_BYTES_MAX, COALESCE_WRITE_BYTES_MAX};
use crate::wire::eio;

/// Frames in the order in which they leave.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// `Rc` around the frame's own `Arc`: the shards of a cast do not fight over one counter.
    frames: VecDeque<Rc<Frame>>,
    /// Bytes of the first frame that the socket has taken.
    written: usize,
    /// Bytes still to be written.
    bytes: usize,
    /// True exactly when the socket refused bytes and has not said since that it takes more.
    pub(crate) blocked: bool,
    /// True exactly when the link stands in the shard's list of links to flush.
    pub(crate) dirty: bool,
}

/// The next write: bytes that stay where they are until `Outbox::sent` is called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// First byte.
    pub start: *const u8,
    /// Number of bytes, at least 1.
    pub len: usize,
}

impl Outbox {
    pub(crate) fn push(&mut self, frame: Rc<Frame>) {
        self.bytes += frame.bytes().len();
        self.frames.push_back(frame);
    }

    /// Bytes still to be written.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// True exactly when more waits than may. A single frame longer than the bound that is next or being written is not counted: it
    /// is no sign that its reader is slow.
    pub(crate) fn is_over(&self, bytes_max: usize) -> bool {
        let long = self.frames.front().map(|frame| frame.bytes().len()).filter(|len| *len > bytes_max);
        self.bytes - long.map_or(0, |len| len - self.written) > bytes_max
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// The next write. A large or lone frame is sent from where it lies; small ones that wait together are copied into `arena`,
    /// because one write for all of them costs about as much as one write for one of them. `None`: nothing to write, or no space left
    /// in the arena, whose buffer must not move (its spans are in use).
    pub(crate) fn next_span(&self, arena: &mut Vec<u8>) -> Option<Span> {
        let first = &self.frames.front()?.bytes()[self.written..];
        let second_is_small = self.frames.get(1).is_some_and(|frame| frame.bytes().len() <= COALESCE_FRAME_BYTES_MAX);
        if first.len() > COALESCE_FRAME_BYTES_MAX || !second_is_small {
            return Some(Span { start: first.as_ptr(), len: first.len() });
        }
        let start = arena.len();
        let space = (arena.capacity() - start).min(COALESCE_WRITE_BYTES_MAX);
        let mut taken = 0;
        for (i, frame) in self.frames.iter().enumerate() {
            let bytes = if i == 0 { first } else { frame.bytes() };
            if bytes.len() > COALESCE_FRAME_BYTES_MAX || taken + bytes.len() > space {
                break;
            }
            arena.extend_from_slice(bytes);
            taken += bytes.len();
        }
        (taken > 0).then(|| Span { start: arena[start..].as_ptr(), len: taken })
    }

    /// The socket took `n` bytes; calls `done` for each frame that is now written whole.
    pub(crate) fn sent(&mut self, n: usize, mut done: impl FnMut(&Frame)) {
        debug_assert!(n <= self.bytes, "more bytes written than queued");
        self.bytes -= n;
        self.written += n;
        while let Some(frame) = self.frames.front() {
            let len = frame.bytes().len();
            if self.written < len {
                break;
            }
            done(frame);
            self.written -= len;
            self.frames.pop_front();
        }
        // An idle link owns no queue.
        if self.frames.is_empty() && self.frames.capacity() > 8 {
            self.frames = VecDeque::new();
        }
    }

    /// Takes the packets of the next frames, of at least one and of no more than `bytes_max` bytes, as a long-polling body. What is
    /// encoded for a WebSocket only is left out. Calls `done` for each frame; returns the bytes that no longer wait, too.
    pub(crate) fn take_payload(&mut self, bytes_max: usize, mut done: impl FnMut(&Frame)) -> (String, usize) {
        let (mut body, mut taken) = (String::new(), 0);
        while let Some(frame) = self.frames.front() {
            if !frame.is_encoded() {
                if !body.is_empty() && body.len() + frame.payload().len() >= bytes_max {
                    break;
                }
                for packet in frame.packets() {
                    eio::push_packet(&mut body, packet);
                }
                done(frame);
            }
            taken += frame.bytes().len();
            self.frames.pop_front();
        }
        self.bytes -= taken;
        (body, taken)
    }

    /// Hands over all frames, none of which is partly written.
    pub(crate) fn take_frames(&mut self) -> VecDeque<Rc<Frame>> {
        self.bytes = 0;
        std::mem::take(&mut self.frames)
    }

    /// Takes everything out, to go to another shard: the frames, and how much of the first is written.
    pub(crate) fn pack(&mut self) -> (Vec<Frame>, usize) {
        let frames = self.take_frames().into_iter().map(|frame| Frame::clone(&frame)).collect();
        (frames, std::mem::take(&mut self.written))
    }

    /// The opposite of [`Self::pack`].
    pub(crate) fn unpack(frames: Vec<Frame>, written: usize) -> Outbox {
        let bytes = frames.iter().map(|frame| frame.bytes().len()).sum::<usize>() - written;
        Outbox { frames: frames.into_iter().map(Rc::new).collect(), written, bytes, ..Outbox::default() }
    }

    /// Forgets everything but the rest of a frame that is partly on the wire; calls `unsent` for each forgotten frame.
    pub(crate) fn truncate(&mut self, mut unsent: impl FnMut(&Frame)) {
        let keep = usize::from(self.written > 0);
        for frame in self.frames.drain(keep.min(self.frames.len())..) {
            unsent(&frame);
        }
        self.bytes = self.frames.front().map_or(0, |frame| frame.bytes().len() - self.written);
    }

    /// Calls `unsent` for every frame that was not written whole.
    pub(crate) fn abandon(&mut self, mut unsent: impl FnMut(&Frame)) {
        for frame in self.frames.drain(..) {
            unsent(&frame);
        }
        (self.bytes, self.written) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outbox(sizes: &[usize]) -> Outbox {
        let mut outbox = Outbox::default();
        for (i, size) in sizes.iter().enumerate() {
            outbox.push(Rc::new(Frame::encoded(vec![i as u8; *size])));
        }
        outbox
    }

    #[test]
    fn one_frame_goes_from_where_it_lies_and_small_ones_together() {
        let mut arena = Vec::with_capacity(1 << 20);
        assert_eq!(outbox(&[100]).next_span(&mut arena).map(|span| span.len), Some(100));
        assert_eq!(arena.len(), 0, "a lone frame is not copied");
        assert_eq!(outbox(&[100, 200, 9_000]).next_span(&mut arena).map(|span| span.len), Some(300));
        assert_eq!(outbox(&[9_000, 1]).next_span(&mut arena).map(|span| span.len), Some(9_000));
        assert_eq!(outbox(&[]).next_span(&mut arena), None);
    }

    #[test]
    fn partial_writes_continue_at_the_right_byte() {
        let mut outbox = outbox(&[10, 20, 30]);
        let mut done = 0;
        outbox.sent(15, |_| done += 1);
        assert_eq!((done, outbox.bytes()), (1, 45));
        let mut arena = Vec::with_capacity(1 << 20);
        let span = outbox.next_span(&mut arena).expect("45 bytes wait");
        assert_eq!(span.len, 45);
        assert_eq!(arena, [vec![1; 15], vec![2; 30]].concat());
        let mut unsent = 0;
        outbox.truncate(|_| unsent += 1);
        assert_eq!((unsent, outbox.bytes()), (1, 15), "the frame that is partly on the wire stays");
        outbox.sent(15, |_| done += 1);
        assert!(outbox.is_empty() && done == 2);
    }

    #[test]
    fn an_arena_without_space_gives_nothing() {
        let mut arena = Vec::with_capacity(5);
        assert_eq!(outbox(&[10, 10]).next_span(&mut arena), None);
    }
}
