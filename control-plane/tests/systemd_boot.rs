//! The package on a machine whose process 1 is a real systemd (Debian 12's, version 252): installed, started, watched, reloaded, upgraded with live clients,
//! stopped and purged. The machine is a container with its own network, and its files are gone when it is off; what happens in it is
//! `systemd/scenario.py`. It needs root, `systemd-nspawn`, `mmdebstrap` and `cargo-deb`, and the first time a Debian mirror.

mod support;

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use support::aloud;
use support::programs::{assert_success, in_path, outcome, skip, target_folder};

/// What the machine has, apart from Debian's essential packages. The image is kept under this name, so another list is another image.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,python3,procps";

/// Runs the scenario and turns the machine off.
const UNIT: &str = "[Unit]\nAfter=multi-user.target\n\
                    [Service]\nType=oneshot\nExecStart=/usr/bin/python3 -B /srv/test/scenario.py\nStandardOutput=append:/srv/test/log\nStandardError=inherit\n\
                    ExecStopPost=/bin/systemctl --no-block poweroff\n";

/// Where the machine finds what this test gives it.
const BED: &str = "/srv/test";

#[test]
fn the_package_does_what_its_administrator_expects() {
    if !rustix::process::geteuid().is_root() {
        return aloud("SKIPPED: the test under systemd needs root");
    }
    for program in ["systemd-nspawn", "mmdebstrap", "cargo-deb"] {
        if in_path(program).is_none() {
            return skip("the test under systemd", program);
        }
    }
    let Some(image) = image() else { return };
    if let Err(reason) = try_out(&image) {
        return aloud(&format!("SKIPPED: the test under systemd needs a container, and there is none to be had here: {reason}"));
    }
    let bed = target_folder().join("tmp/systemd");
    let _ = fs::remove_dir_all(&bed);
    fs::create_dir_all(&bed).expect("ours");
    fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/systemd/scenario.py"), bed.join("scenario.py")).expect("it is there");
    // The image leaves examples out.
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../systemd/uringcast.service.d/keep-sockets.conf");
    fs::copy(example, bed.join("keep-sockets.conf")).expect("it is there");
    // The versions of one source: what an upgrade does depends on nothing else.
    pack("0.1.0-1", &bed.join("old.deb"));
    pack("0.1.0-2", &bed.join("new.deb"));
    check_form(&bed.join("new.deb"));
    boot(&image, &bed);
}

/// The folder with the machine's files, made if it is not there yet.
fn image() -> Option<PathBuf> {
    let folder = target_folder().join("images").join(format!("bookworm-{}", PACKAGES.replace(',', "-")));
    let complete = folder.join("etc/systemd/system/scenario.service");
    if complete.exists() {
        return Some(folder);
    }
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("ours");
    let mut mmdebstrap = Command::new("mmdebstrap");
    // Pages and documents of all those packages are of no use here.
    let excluded = ["--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/doc/*"];
    mmdebstrap.args(["--quiet", "--variant=minbase"]).args(excluded).arg(format!("--include={PACKAGES}")).arg("bookworm").arg(&folder);
    let made = mmdebstrap.stdin(Stdio::null()).output().expect("it is in the path");
    if !made.status.success() {
        let said = String::from_utf8_lossy(&made.stderr);
        aloud(&format!("SKIPPED: the test under systemd needs a Debian mirror, and mmdebstrap says:\n{said}"));
        return None;
    }
    let units = folder.join("etc/systemd/system");
    let wants = units.join("multi-user.target.wants");
    fs::create_dir_all(&wants).expect("ours");
    std::os::unix::fs::symlink("../scenario.service", wants.join("scenario.service")).expect("a fresh image");
    // Last: it says that the image is complete.
    fs::write(complete, UNIT).expect("ours");
    Some(folder)
}

/// A container with these files: whatever is written to them is kept in memory.
fn container(image: &Path) -> Command {
    let mut nspawn = Command::new("systemd-nspawn");
    // Where the machine that we run on has control groups of the first version, the container has them of the second all the same.
    nspawn.env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1");
    nspawn.args(["--quiet", "--register=no", "--keep-unit", "--private-network", "--volatile=overlay"]);
    nspawn.arg(format!("--machine=uringcast-{}", std::process::id())).arg("--directory").arg(image).stdin(Stdio::null());
    nspawn
}

/// Whether this machine lets us have a container at all.
fn try_out(image: &Path) -> Result<(), String> {
    let tried = container(image).arg("/bin/true").output().expect("it is in the path");
    if tried.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&tried.stderr).into_owned()) }
}

/// Builds the package of the binary under test.
fn pack(version: &str, file: &Path) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/debian/package");
    let packed = Command::new(script)
        .args(["--fast", "--output"])
        .arg(file)
        .env("BINARY", env!("CARGO_BIN_EXE_uringcast"))
        .env("VERSION", version)
        .env("STAGE", target_folder().join("tmp/package"))
        .stdin(Stdio::null())
        .output()
        .expect("a script");
    assert!(packed.status.success(), "{}", String::from_utf8_lossy(&packed.stderr));
}

/// What Debian's checker has against it.
fn check_form(package: &Path) {
    if in_path("lintian").is_none() {
        return skip("the form of the package", "lintian");
    }
    let checked =
        Command::new("lintian").args(["--allow-root", "--fail-on", "error,warning"]).arg(package).output().expect("it is in the path");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

/// Lets the machine run until it turns itself off.
fn boot(image: &Path, bed: &Path) {
    let console = bed.join("console");
    let output = fs::File::create(&console).expect("ours");
    let mut machine = container(image);
    machine.arg(format!("--bind={}:{BED}", bed.display())).arg("--boot");
    machine.stdout(output.try_clone().expect("a descriptor")).stderr(output).process_group(0);
    let status = outcome(&mut machine.spawn().expect("it is in the path"));
    assert_success("the machine", status, &console);
    let told = fs::read_to_string(bed.join("log")).unwrap_or_default();
    assert!(told.ends_with("all passed\n"), "{told}\nThe console:\n{}", fs::read_to_string(&console).unwrap_or_default());
}
