//! Programs that others wrote, run beside the server: whether they are here, and how they end.

use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use super::aloud;

/// A script of a minute or so gets this much, on a machine that does other things too.
pub(crate) const SCRIPT_TIME: Duration = Duration::from_secs(240);

/// How it ended; after [`SCRIPT_TIME`] its whole process group is killed and the answer is `None`.
pub(crate) fn outcome(client: &mut Child) -> Option<ExitStatus> {
    let end = Instant::now() + SCRIPT_TIME;
    let group = Pid::from_raw(i32::try_from(client.id()).expect("process ids are small")).expect("and not 0");
    let status = loop {
        match client.try_wait().expect("our child") {
            Some(status) => break Some(status),
            None if Instant::now() > end => break None,
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    // Whatever it left behind goes with it; usually there is nothing.
    let _ = rustix::process::kill_process_group(group, Signal::KILL);
    let _ = client.wait();
    status
}

/// Fails unless the program ended well; says what it had written to `log`.
pub(crate) fn assert_success(name: &str, status: Option<ExitStatus>, log: &Path) {
    let told = std::fs::read_to_string(log).unwrap_or_default();
    match status {
        Some(status) if status.success() => {}
        Some(status) => panic!("{name}: {status}\n{told}"),
        None => panic!("{name}: not ready after {SCRIPT_TIME:?}\n{told}"),
    }
}

/// Says what is not tried for want of something, or fails if everything was asked for.
pub(crate) fn skip(name: &str, missing: &str) {
    assert!(std::env::var_os("URINGCAST_TEST_CLIENTS").is_none(), "{name} needs {missing}");
    aloud(&format!("SKIPPED: {name} needs {missing} (.ci/test installs it)"));
}

pub(crate) fn in_path(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// The target folder, where `.ci/test` installs packages.
pub(crate) fn target_folder() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("it is target/tmp")
}
