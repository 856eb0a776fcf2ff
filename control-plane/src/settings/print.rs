//! `print-config`: the reference of all settings, written from the table, with the values in force. The output is a configuration
//! file: what it shows can be loaded again and means the same, but for secrets, which stand there as comments.

use std::fmt::Write as _;

use super::endpoints::described;
use super::problem::{Origin, Problems};
use super::sources::{Environment, Flags, Gathered, allowed};
use super::table::{Setting, endpoint_settings, settings};
use super::value::{Kind, Value, toml_text, without_credentials};

/// All settings as TOML, each below what there is to know about it.
pub fn print(flags: &Flags, environment: &Environment) -> Result<String, Problems> {
    let gathered = Gathered::gather(flags, environment);
    if !gathered.problems.is_empty() {
        return Err(Problems(gathered.problems));
    }
    let mut page = String::from(
        "# Every setting of uringcast with the value in force. A flag wins over the variable, the variable over the old\n\
         # variables of the servers that uringcast replaces, those over the file, the file over the default.\n\n",
    );
    let mut section = "";
    for setting in settings() {
        if setting.section() != section {
            section = setting.section();
            page += &format!("[{section}]\n");
        }
        print_setting(&mut page, &setting, &gathered);
    }
    print_endpoints(&mut page, &gathered);
    Ok(page)
}

fn print_setting(page: &mut String, setting: &Setting, gathered: &Gathered) {
    let given = gathered.given(setting.path);
    let default = setting.default.as_ref().and_then(Value::toml).unwrap_or_else(|| "unset".to_owned());
    // Writing to a String cannot fail.
    let _ = writeln!(page, "# {}", setting.doc);
    let _ = writeln!(page, "# {}; default {default}", allowed(setting));
    let _ = writeln!(page, "# {}", names(setting));
    if let Some(origin) = given.map(|given| &given.origin).filter(|origin| **origin != Origin::Default) {
        let _ = writeln!(page, "# set by {}", origin.to_string().escape_debug());
    }
    let _ = writeln!(page, "{}\n", line(setting, given.map(|given| &given.value)));
}

fn names(setting: &Setting) -> String {
    let flag = setting.flag.map(|flag| format!("flag {flag}, ")).unwrap_or_default();
    let old = if setting.old.is_empty() { String::new() } else { format!(", else {}", setting.old.join(", else ")) };
    format!("{flag}variable {}{old}", setting.variable())
}

/// `key = value`, as a comment where there is no value or where it must not be seen.
fn line(setting: &Setting, value: Option<&Value>) -> String {
    let key = setting.key();
    match (setting.kind, value) {
        (_, None) => format!("# {key} ="),
        (Kind::Url, Some(Value::Text(url))) if without_credentials(url) != *url => {
            format!("# {key} = {} (credentials hidden)", toml_text(&without_credentials(url)))
        }
        (_, Some(value)) => match (value.toml(), value.redacted()) {
            (Some(text), _) => format!("{key} = {text}"),
            (None, Some(text)) => format!("# {key} = {text} (credentials hidden)"),
            (None, None) => format!("# {key} = (hidden)"),
        },
    }
}

fn print_endpoints(page: &mut String, gathered: &Gathered) {
    *page += "# What is served: a table for each endpoint. Without any, those of the default configuration. Its keys:\n#\n";
    for setting in endpoint_settings() {
        let _ = writeln!(page, "# {}: {}\n#   {}", setting.key(), setting.doc, allowed(&setting));
    }
    *page += "#\n# All but name and dialect have a variable URINGCAST_ENDPOINT_NAME_KEY.\n";
    for (endpoint, hooks) in gathered.endpoints.list.iter().zip(&gathered.endpoints.hooks) {
        *page += "\n[[endpoint]]\n";
        for (key, value) in described(endpoint, hooks) {
            let _ = match value.toml() {
                Some(value) => writeln!(page, "{key} = {value}"),
                None => writeln!(page, "# {key} = (hidden)"),
            };
        }
    }
}
