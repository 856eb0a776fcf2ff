//! How a command on this host reaches the server: where its control plane listens and what opens it, from the same flags, variables and
//! file as the server's own settings. What else is wrong with them does not matter here.

use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use super::problem::{Origin, Problems};
use super::sources::{Environment, Flags, Gathered};
use super::{ControlListen, admin_token};
use crate::secret::Secret;

/// Where the system service has its configuration.
const SERVICE_FILE: &str = "/etc/uringcast/uringcast.toml";

/// Where the system service's credential comes from (systemd/README.md).
const SERVICE_TOKEN: &str = "/etc/uringcast/admin_token";

/// Where a server's Unix socket is looked for that nobody named.
const SERVICE_SOCKET: &str = "/run/uringcast/control.sock";

/// A way to a running server.
#[derive(Debug)]
pub struct Access {
    /// Where it listens.
    pub listen: ControlListen,
    /// Who said so.
    pub listen_from: String,
    /// Opens the admin API, where one was found.
    pub token: Option<Secret>,
    /// Where that was found.
    pub token_from: Option<String>,
}

impl Access {
    /// Looks where the server looks. Without `--config` the file of the system service is read, if it is there; without an address the
    /// socket of the system service is taken, if it is there; without a token, and if nobody named another server, that of the service.
    pub fn find(flags: &Flags, environment: &Environment) -> Result<Access, Problems> {
        let service_file = || Path::new(SERVICE_FILE).exists().then(|| PathBuf::from(SERVICE_FILE));
        let flags = Flags { config: flags.config.clone().or_else(service_file), ..flags.clone() };
        let mut gathered = Gathered::gather(&flags, environment);
        let token = admin_token(&mut gathered, environment);
        gathered.problems.retain(|problem| problem.key.starts_with("control.") || problem.key == "--config");
        if !gathered.problems.is_empty() {
            return Err(Problems(gathered.problems));
        }
        let origin = |path: &str| gathered.given(path).map_or(Origin::Default, |given| given.origin.clone());
        let (listen, listen_from) = match origin("control.listen") {
            Origin::Default if is_socket(Path::new(SERVICE_SOCKET)) => {
                (ControlListen::Unix(SERVICE_SOCKET.into()), "the usual place".to_owned())
            }
            from => (gathered.control("control.listen").clone(), from.to_string()),
        };
        let token_from = token.as_ref().map(|_| match (origin("control.token"), origin("control.token_file")) {
            (Origin::Default, Origin::Default) => "the systemd credential admin_token".to_owned(),
            (Origin::Default, file) => format!("control.token_file ({file})"),
            (value, _) => value.to_string(),
        });
        let access = Access { listen, listen_from, token, token_from };
        let is_service = is_of_service(&origin("control.listen"), flags.config.as_deref());
        Ok(if access.token.is_none() && is_service { access.with_service_token() } else { access })
    }

    fn with_service_token(self) -> Access {
        match Secret::read(Path::new(SERVICE_TOKEN)) {
            Ok(token) => Access { token: Some(token), token_from: Some(format!("file {SERVICE_TOKEN}")), ..self },
            Err(_) => self,
        }
    }
}

/// True exactly when the server that is meant is that of the system service: whoever named another would show that one the service's token.
fn is_of_service(listen: &Origin, config: Option<&Path>) -> bool {
    match listen {
        Origin::Default => config.is_none_or(|config| config == Path::new(SERVICE_FILE)),
        Origin::File(_) => config == Some(Path::new(SERVICE_FILE)),
        Origin::Flag(_) | Origin::Variable(_) | Origin::OldVariable(_) => false,
    }
}

fn is_socket(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.file_type().is_socket())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_of_the_service_is_for_no_other_server() {
        let (service, other) = (Some(Path::new(SERVICE_FILE)), Some(Path::new("/tmp/other.toml")));
        let file = || Origin::File("line 3".into());
        assert!(is_of_service(&Origin::Default, None) && is_of_service(&Origin::Default, service) && is_of_service(&file(), service));
        let named = [Origin::Flag("--control"), Origin::Variable("URINGCAST_CONTROL_LISTEN".into()), Origin::OldVariable("X".into())];
        assert!(named.iter().all(|origin| !is_of_service(origin, service) && !is_of_service(origin, None)));
        assert!(!is_of_service(&file(), other) && !is_of_service(&Origin::Default, other));
    }
}
