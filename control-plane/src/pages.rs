//! Man pages and shell completions, made from the command line's definition by the binary itself, so that what a package ships is what its
//! binary takes.

use std::fs;
use std::io;
use std::path::Path;

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::cli::Cli;

/// The shells that Debian has folders for.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

/// Writes `uringcast.1`, a page for each command, and the completions under the names that the shells want.
pub fn write(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    clap_mangen::generate_to(Cli::command(), folder)?;
    for shell in SHELLS {
        clap_complete::generate_to(shell, &mut Cli::command(), "uringcast", folder)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::scratch::Scratch;

    #[test]
    fn every_command_has_a_page_and_every_shell_its_file() {
        let scratch = Scratch::file("");
        let folder = scratch.directory().join("pages");
        write(&folder).expect("it can be written");
        let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
        assert!(read("uringcast.1").contains("check\\-config"), "{}", read("uringcast.1"));
        assert!(read("uringcast-kick-user.1").contains("reason"));
        for file in ["uringcast.bash", "_uringcast", "uringcast.fish"] {
            assert!(read(file).contains("connections"), "{file}");
        }
        let is_told = |file: fs::DirEntry| file.file_name().to_string_lossy().contains("pages");
        assert!(!fs::read_dir(&folder).expect("ours").flatten().any(is_told), "what packagers use is no command for people");
    }
}
