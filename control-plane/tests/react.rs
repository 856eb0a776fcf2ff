//! The React hook of `web/use-websocket`: its types with React 19 and 18, its tests with the built binary, and its page in Chromium.
//! Everything is done on a copy in `target/use-websocket`, where `.ci/test` installs the packages; where they are missing, the test says so aloud, or
//! fails if `URINGCAST_TEST_CLIENTS` asks for it.

mod support;

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use support::programs::{assert_success, in_path, outcome, skip, target_folder};

const NAME: &str = "the React hook";

#[test]
fn react_hook() {
    let (sources, copy) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("web/use-websocket"), target_folder().join("use-websocket"));
    let npm = match tools(&sources, &copy) {
        Ok(npm) => npm,
        Err(missing) => return skip(NAME, &missing),
    };
    refresh(&sources, &copy);
    let log = target_folder().join("tmp/react.log");
    let file = fs::File::create(&log).expect("the target folder can be written");
    // A process group of its own takes a browser's many processes along when it is ended.
    let mut checks = Command::new(npm)
        .args(["run", "check"])
        .current_dir(&copy)
        .env("URINGCAST", env!("CARGO_BIN_EXE_uringcast"))
        .env("NO_COLOR", "1")
        .env("npm_config_update_notifier", "false")
        .stdin(Stdio::null())
        .stdout(file.try_clone().expect("one more descriptor"))
        .stderr(file)
        .process_group(0)
        .spawn()
        .expect("npm is there");
    assert_success(NAME, outcome(&mut checks), &log);
}

/// npm, or what is missing.
fn tools(sources: &Path, copy: &Path) -> Result<PathBuf, String> {
    let npm = in_path("npm").ok_or("npm")?;
    let lock = |folder: &Path| fs::read(folder.join("package-lock.json")).ok();
    if !copy.join(".npm-installed").exists() || lock(sources) != lock(copy) {
        return Err("the packages of its package-lock.json in target/use-websocket".into());
    }
    if !Path::new("/usr/bin/chromium").exists() {
        return Err("/usr/bin/chromium".into());
    }
    Ok(npm)
}

/// Copies the sources; what is no longer there goes from the copy too, what is installed and built stays.
fn refresh(sources: &Path, copy: &Path) {
    for entry in fs::read_dir(sources).expect("the package is in the sources").flatten() {
        let (source, target) = (entry.path(), copy.join(entry.file_name()));
        match entry.file_name().to_str() {
            Some("node_modules" | "dist" | "generated") => {}
            _ if source.is_dir() => {
                // Not there before the first time.
                let _ = fs::remove_dir_all(&target);
                copy_folder(&source, &target);
            }
            _ => copy_file(&source, &target),
        }
    }
}

fn copy_folder(source: &Path, target: &Path) {
    fs::create_dir_all(target).expect("the target folder can be written");
    for entry in fs::read_dir(source).expect("a folder of the sources").flatten() {
        let (source, target) = (entry.path(), target.join(entry.file_name()));
        if source.is_dir() { copy_folder(&source, &target) } else { copy_file(&source, &target) }
    }
}

fn copy_file(source: &Path, target: &Path) {
    fs::copy(source, target).unwrap_or_else(|error| panic!("{} to {}: {error}", source.display(), target.display()));
}
