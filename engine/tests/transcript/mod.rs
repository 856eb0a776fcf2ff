//! Transcripts: `script` reads the lines, `pattern` compares and fills them in, `play` runs them.

mod pattern;
pub(crate) mod play;
mod script;
