//! One operation under callgrind: this program starts itself there, collecting only between the beginning and the end of one function.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::operations::Operation;

/// What a run of one operation came to.
pub(super) struct Count {
    /// Instructions of each.
    pub(super) instructions: f64,
    /// What the program saw of the processor that valgrind shows it.
    pub(super) cpu: String,
}

/// The function's name, as [`super::operations::counted`] is called whatever the compiler makes of it.
const COUNTED: &str = "*operations*counted*";

/// The version, `valgrind-3.19.0`; an error that says how to get it.
pub(super) fn version() -> Result<String, String> {
    let output = Command::new("valgrind").arg("--version").output();
    let output = output.map_err(|error| format!("valgrind: {error}; it is the Debian package `valgrind`"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Runs it, with its file in `folder`.
pub(super) fn count(operation: &Operation, folder: &Path) -> Result<Count, String> {
    let told = |reason: String| format!("{}: {reason}", operation.name);
    let file = folder.join(operation.name);
    let this = env::current_exe().map_err(|error| told(format!("this program: {error}")))?;
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--quiet", "--tool=callgrind", "--collect-atstart=no"]).arg(format!("--toggle-collect={COUNTED}"));
    valgrind.arg(format!("--callgrind-out-file={}", file.display())).arg(this).args(["counts", "--alone", operation.name]);
    // What the environment is long the stack is aligned by, and nothing here needs any of it.
    valgrind.env_clear().env("PATH", env::var_os("PATH").unwrap_or_default());
    let output = valgrind.output().map_err(|error| told(format!("valgrind: {error}")))?;
    if !output.status.success() {
        return Err(told(format!("{}\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim())));
    }
    let said: Value = serde_json::from_slice(&output.stdout).map_err(|error| told(format!("said no JSON: {error}")))?;
    let (Some(times), Some(cpu)) = (said["times"].as_u64(), said["cpu"].as_str()) else { return Err(told(format!("said {said}"))) };
    let profile = fs::read_to_string(&file).map_err(|error| told(format!("{}: {error}", file.display())))?;
    match total(&profile) {
        None | Some(0) => Err(told(format!("nothing was counted: is there a function like {COUNTED}, or was it inlined?"))),
        Some(total) => Ok(Count { instructions: total as f64 / times as f64, cpu: cpu.to_owned() }),
    }
}

/// The sum in callgrind's file.
fn total(profile: &str) -> Option<u64> {
    profile.lines().find_map(|line| line.strip_prefix("totals: "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_found() {
        assert_eq!(total("# callgrind format\nevents: Ir\n\nfn=(1) x\n0 12\n\ntotals: 1006316\n"), Some(1_006_316));
        assert_eq!(total("# callgrind format\nevents: Ir\n"), None);
    }
}
