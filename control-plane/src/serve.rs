//! Runs the server.

use std::process::ExitCode;

use crate::settings::Settings;

/// Runs until the process is told to stop.
#[expect(clippy::needless_pass_by_value, reason = "the server owns its settings")]
pub fn run(settings: Settings) -> ExitCode {
    ExitCode::from(u8::from(settings.engine.endpoints.is_empty()))
}
