//! Bodies of requests: read in one piece or cut anywhere they come to the same, and nothing behind them is touched.
#![no_main]

use engine::wire::body::{Body, BodyFault};
use engine::wire::http::Framing;
use libfuzzer_sys::fuzz_target;

const DATA_MAX: usize = 64;
const FRAMING_MAX: usize = 64;

/// What came of it, and how many bytes belonged to it.
type Outcome = (Result<Option<Vec<u8>>, BodyFault>, usize);

fn read<'a>(framing: Framing, pieces: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
    let mut body = match Body::new(framing, DATA_MAX, FRAMING_MAX) {
        Ok(body) => body,
        Err(fault) => return (Err(fault), 0),
    };
    let mut used = 0;
    for piece in pieces {
        if body.is_done() {
            break;
        }
        match body.feed(piece) {
            Ok(taken) => {
                assert!(taken <= piece.len() && (taken == piece.len() || body.is_done()));
                assert!(body.len() <= DATA_MAX);
                used += taken;
            }
            Err(fault) => return (Err(fault), 0),
        }
    }
    (Ok(body.is_done().then(|| body.into_data())), used)
}

fuzz_target!(|data: &[u8]| {
    let Some((&cut, bytes)) = data.split_first() else { return };
    let (first, second) = bytes.split_at(usize::from(cut).min(bytes.len()));
    for framing in [Framing::Chunked, Framing::Sized(usize::from(cut))] {
        let whole = read(framing, [bytes]);
        assert_eq!(read(framing, [first, second]), whole);
        assert_eq!(read(framing, bytes.chunks(1)), whole);
    }
});
