//! A host behind links of its own: a network namespace whose way to Redis can be cut while clients still reach it. It needs root and iproute2.

/// A namespace with a way to Redis and one to its clients.
pub(crate) struct Network;

/// The bridge's end of both ways; Redis listens on the first.
pub(crate) const TO_REDIS: [&str; 2] = ["10.77.1.1", "10.77.1.2"];
/// The same for clients.
pub(crate) const TO_CLIENTS: [&str; 2] = ["10.77.2.1", "10.77.2.2"];
/// Its name.
pub(crate) const NAMESPACE: &str = "uringcast-cut";

impl Network {
    pub(crate) fn start() -> Network {
        drop(Network);
        ip(&format!("netns add {NAMESPACE}"));
        for (name, [outside, inside]) in [("ucr", TO_REDIS), ("ucc", TO_CLIENTS)] {
            ip(&format!("link add {name}0 type veth peer name {name}1 netns {NAMESPACE}"));
            ip(&format!("addr add {outside}/24 dev {name}0"));
            ip(&format!("link set {name}0 up"));
            ip(&format!("-n {NAMESPACE} addr add {inside}/24 dev {name}1"));
            ip(&format!("-n {NAMESPACE} link set {name}1 up"));
        }
        ip(&format!("-n {NAMESPACE} link set lo up"));
        Network
    }

    pub(crate) fn cut(&self) {
        ip("link set ucr0 down");
    }

    pub(crate) fn heal(&self) {
        ip("link set ucr0 up");
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // The kernel takes the links of a namespace away some time after it; asked for by name they are gone at once.
        for words in [["link", "del", "ucr0"], ["link", "del", "ucc0"], ["netns", "del", NAMESPACE]] {
            let _ = std::process::Command::new("ip").args(words).stderr(std::process::Stdio::null()).status();
        }
    }
}

fn ip(words: &str) {
    let status = std::process::Command::new("ip").args(words.split(' ')).status().expect("the package iproute2 is installed");
    assert!(status.success(), "ip {words}: network namespaces need root");
}
