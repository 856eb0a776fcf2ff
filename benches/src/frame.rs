//! The little of RFC 6455 that a client needs: masked frames out, whole unmasked frames in, both on plain byte slices.
//! A server that fragments a message is a mistake here: none of ours does, and a measurement must not hide it.

/// Opcode of a text frame.
pub(crate) const TEXT: u8 = 0x1;
/// Opcode of a close frame.
pub(crate) const CLOSE: u8 = 0x8;
/// Opcode of a ping frame.
pub(crate) const PING: u8 = 0x9;
/// Opcode of a pong frame.
pub(crate) const PONG: u8 = 0xA;

const FINAL: u8 = 0x80;
const MASKED: u8 = 0x80;
/// The mask hides nothing on loopback, but it must not be zero, or a server might skip the work that real clients give it.
const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];

/// One whole frame at the start of a buffer.
#[derive(Debug, PartialEq)]
pub(crate) struct Frame<'a> {
    pub(crate) opcode: u8,
    pub(crate) payload: &'a [u8],
    /// Bytes of header and payload together.
    pub(crate) length: usize,
}

/// The first frame of `bytes`, `None` while it is incomplete, an error where a server may not write such a thing.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<Frame<'_>>, &'static str> {
    let [first, second, ..] = *bytes else { return Ok(None) };
    if first & FINAL == 0 {
        return Err("the server sent a fragment");
    }
    if first & 0x70 != 0 || second & MASKED != 0 {
        return Err("the server set a reserved bit or masked a frame");
    }
    let (header, size): (usize, usize) = match (second, bytes) {
        (126, [_, _, a, b, ..]) => (4, usize::from(u16::from_be_bytes([*a, *b]))),
        (127, [_, _, a, b, c, d, e, f, g, h, ..]) => (10, u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]) as usize),
        (126 | 127, _) => return Ok(None),
        (short, _) => (2, usize::from(short)),
    };
    let end = header.checked_add(size).ok_or("the server announced an impossible length")?;
    Ok(bytes.get(header..end).map(|payload| Frame { opcode: first & 0x0F, payload, length: end }))
}

/// Appends one masked frame to `out` whose payload is `parts` one after the other.
pub(crate) fn append(opcode: u8, parts: &[&[u8]], out: &mut Vec<u8>) {
    let size: usize = parts.iter().map(|part| part.len()).sum();
    out.push(FINAL | opcode);
    match size {
        0..=125 => out.push(MASKED | size as u8),
        126..=0xFFFF => {
            out.push(MASKED | 126);
            out.extend_from_slice(&(size as u16).to_be_bytes());
        }
        _ => {
            out.push(MASKED | 127);
            out.extend_from_slice(&(size as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&MASK);
    let start = out.len();
    parts.iter().for_each(|part| out.extend_from_slice(part));
    for chunk in out[start..].chunks_mut(4) {
        chunk.iter_mut().zip(MASK).for_each(|(byte, mask)| *byte ^= mask);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;
    use tungstenite::protocol::frame::{FrameHeader, coding::Control, coding::Data, coding::OpCode};

    fn written_by_tungstenite(opcode: OpCode, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let header = FrameHeader { opcode, ..FrameHeader::default() };
        header.format(payload.len() as u64, &mut bytes).expect("writes to memory");
        bytes.extend_from_slice(payload);
        bytes
    }

    #[test]
    fn tungstenite_reads_what_we_write() {
        for size in [0usize, 1, 125, 126, 0xFFFF, 0x1_0000] {
            let text = vec![b'a'; size];
            let mut bytes = Vec::new();
            append(TEXT, &[&text[..size / 2], &text[size / 2..]], &mut bytes);
            let mut cursor = Cursor::new(&bytes);
            let (header, length) = FrameHeader::parse(&mut cursor).expect("valid").expect("complete");
            assert_eq!((header.opcode, header.mask, length), (OpCode::Data(Data::Text), Some(MASK), size as u64));
            let body: Vec<u8> = bytes[cursor.position() as usize..].iter().enumerate().map(|(i, byte)| byte ^ MASK[i % 4]).collect();
            assert_eq!(body, text);
        }
    }

    #[test]
    fn we_read_what_tungstenite_writes_and_wait_for_the_last_byte() {
        for size in [0usize, 125, 126, 0xFFFF, 0x1_0000] {
            let bytes = written_by_tungstenite(OpCode::Data(Data::Text), &vec![b'z'; size]);
            let frame = parse(&bytes).expect("valid").expect("complete");
            assert_eq!((frame.opcode, frame.payload.len(), frame.length), (TEXT, size, bytes.len()));
            for cut in (0..bytes.len()).take(20).chain([bytes.len() - 1]) {
                assert_eq!(parse(&bytes[..cut]), Ok(None));
            }
        }
        let ping = written_by_tungstenite(OpCode::Control(Control::Ping), b"x");
        assert_eq!(parse(&ping).expect("valid").expect("complete").opcode, PING);
    }

    #[test]
    fn what_a_server_may_not_send_is_an_error() {
        assert!(parse(&[0x01, 0x00]).is_err());
        assert!(parse(&[0xC1, 0x00]).is_err());
        assert!(parse(&[0x81, 0x80]).is_err());
    }
}
