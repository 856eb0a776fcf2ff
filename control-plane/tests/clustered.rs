//! Two hosts on what may stand in the place of one Redis: a cluster of three masters with a replica each, and a master and its replica with
//! Sentinels. A master is replaced in good order or killed while clients speak on both hosts; nobody is started again. Real processes, figures
//! are printed; nothing depends on how long something takes.

#[path = "support/across.rs"]
mod across;
#[path = "../../engine/tests/redis_bed/mod.rs"]
mod redis_bed;
mod support;

use std::time::Duration;

use across::{Client, connected, everything, same_answer, v1};
use redis_bed::{Cluster, Redis, Sentinels, until};
use support::load::{Book, Load, Plan};
use support::{Server, Setup, aloud};

const ROOMS: usize = 10;
const SECOND: Duration = Duration::from_secs(1);

/// A list of TOML.
fn list(urls: &[String]) -> String {
    format!("[{}]", urls.iter().map(|url| format!("\"{url}\"")).collect::<Vec<_>>().join(", "))
}

fn on_cluster(cluster: &Cluster, relay: &str) -> [Server; 2] {
    // Two nodes name the others.
    pair(format!("[redis]\ncluster = {}\n[relay]\n{relay}\n", list(&cluster.urls()[..2])))
}

fn on_sentinels(bed: &Sentinels, relay: &str) -> [Server; 2] {
    pair(format!("[redis]\nsentinels = {}\nmaster = \"{}\"\n[relay]\n{relay}\n", list(&bed.urls()), Sentinels::MASTER))
}

fn pair(sections: String) -> [Server; 2] {
    // A few bytes, for as long as the test runs.
    let sections: &'static str = sections.leak();
    let setup = Setup { sections, limits: across::LIMITS, variables: across::VARIABLES, ..Setup::default() };
    let hosts = [(); 2].map(|()| Server::start(&setup));
    connected(&hosts);
    until("both know each other", || {
        hosts.iter().all(|host| v1(host, "GET", "/v1/hosts", None).1["hosts"].as_array().map(Vec::len) == Some(2))
    });
    hosts
}

fn load(hosts: &[Server; 2]) -> Load {
    let plan = Plan {
        hosts: hosts.iter().map(|host| host.public).collect(),
        clients_per_host: 20,
        rooms: ROOMS,
        every: Duration::from_millis(50),
    };
    Load::start(plan)
}

/// The sum of a metric over hosts.
fn counted(hosts: &[Server; 2], metric: &str, labels: &[(&str, &str)]) -> u64 {
    hosts.iter().map(|host| host.metric(metric, labels) as u64).sum()
}

/// Why something was not relayed, and how often.
fn dropped(hosts: &[Server; 2]) -> String {
    let of = |reason: &&str| match counted(hosts, "uringcast_relay_dropped_total", &[("reason", reason)]) {
        0 => None,
        count => Some(format!("{reason} {count}")),
    };
    let reasons = ["age", "overflow", "unconfirmed", "unheard", "missed", "refused", "malformed", "unspeakable", "flood", "busy", "answer"];
    reasons.iter().filter_map(of).collect::<Vec<_>>().join(", ")
}

/// What came of a load during which masters were replaced, the last time at `healed`.
fn report(what: &str, hosts: &mut [Server; 2], load: Load, healed: Duration) -> Book {
    let book = load.finish();
    aloud(&format!(
        "{what}: {} messages; on their own host {} of {} deliveries lost, the slowest {} ms; between hosts {} of {} lost ({} messages), doubled {}, misordered {}, cut {}; counted: {}; whole again {} ms after the new master",
        book.sent,
        book.local_lost,
        book.local,
        book.local_latency_max.as_millis(),
        book.cross_lost,
        book.cross,
        book.missed.len(),
        book.doubled,
        book.misordered,
        book.cut,
        dropped(hosts),
        book.whole_after(SECOND).saturating_sub(healed).as_millis(),
    ));
    assert_eq!((book.local_lost, book.doubled, book.misordered, book.cut), (0, 0, 0, 0), "{:?}", &book.missed[..book.missed.len().min(5)]);
    assert!(book.cross > 1_000, "{} deliveries between hosts test little", book.cross);
    hosts.iter_mut().for_each(Server::assert_well);
    book
}

/// In the mode without memory what somebody on the other host did not hear is counted. How much was said on a channel while nobody listened
/// there the listener does not know; the sender counts what he knows of.
fn assert_counted(hosts: &[Server; 2], book: &Book) {
    let counted = counted(hosts, "uringcast_relay_dropped_total", &[]);
    assert!(book.missed.is_empty() || counted > 0, "{} messages were missed and none counted", book.missed.len());
}

/// In the mode with memory nothing is lost.
fn assert_nothing_lost(hosts: &[Server; 2], book: &Book) {
    assert_eq!(
        book.cross_lost,
        0,
        "{:?}; gaps {}",
        &book.missed[..book.missed.len().min(5)],
        counted(hosts, "uringcast_relay_stream_missed_total", &[])
    );
}

/// People who come, stay and go while a master is away.
struct People {
    stays: Client,
    goes: Option<Client>,
    comes: Option<Client>,
}

impl People {
    fn before(hosts: &[Server; 2], redis: &dyn Fn(&[&str]) -> String) -> People {
        let [stays, goes] = [(0, "stays"), (1, "goes")].map(|(host, user)| Client::community(&hosts[host], user));
        until("both are online", || ["stays", "goes"].iter().all(|user| redis(&["SISMEMBER", "users:online", user]) == "1"));
        People { stays, goes: Some(goes), comes: None }
    }

    fn meanwhile(&mut self, hosts: &[Server; 2]) {
        self.goes = None;
        self.comes = Some(Client::community(&hosts[1], "comes"));
    }

    /// Whoever is there and nobody else is online for all hosts and programs.
    fn after(self, redis: &dyn Fn(&[&str]) -> String) {
        until("whoever is there is online, and nobody else", || {
            [("stays", "1"), ("goes", "0"), ("comes", "1")]
                .iter()
                .all(|(user, is_so)| redis(&["SISMEMBER", "users:online", user]) == *is_so)
        });
        drop(self.stays);
        until("who stayed and goes now is offline", || redis(&["SISMEMBER", "users:online", "stays"]) == "0");
    }
}

/// Both hosts have the same past of the load's rooms.
fn assert_same_past(hosts: &[Server; 2]) {
    for room in 0..ROOMS {
        same_answer(hosts, &format!("/v1/rooms/load{room}/messages?limit=100"), |answer| {
            answer["messages"].as_array().is_some_and(|list| !list.is_empty())
        });
    }
}

/// Asks whichever node of the cluster has it.
fn of_cluster(cluster: &Cluster, words: &[&str]) -> String {
    let living = cluster.nodes.iter().find(|node| node.is_running()).expect("one is left");
    living.cli(&[&["-c"], words].concat())
}

/// The replica of a master takes over in good order.
fn replace(cluster: &Cluster, master: usize, slot: u16) {
    let replica = master + 3;
    until("the replica asks for it", || cluster.nodes[replica].cli(&["CLUSTER", "FAILOVER"]) == "OK");
    until("it has taken over", || {
        cluster.nodes.iter().filter(|node| node.is_running()).all(|node| cluster.owner_for(node, slot) == replica)
    });
}

/// Ends the node that has a slot, and waits until all others agree on who has it now.
fn kill_owner(cluster: &mut Cluster, slot: u16, meanwhile: impl FnOnce()) {
    let owner = cluster.owner(5, slot);
    cluster.nodes[owner].kill();
    meanwhile();
    let is_well = |node: &Redis| cluster.owner_for(node, slot) != owner && node.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok");
    until("a replica has taken over", || cluster.nodes.iter().filter(|node| node.is_running()).all(is_well));
}

#[test]
fn a_cluster_with_sharded_channels_replaces_its_masters() {
    let mut cluster = Cluster::start(3, true);
    let mut hosts = on_cluster(&cluster, "adapter = \"sharded\"");
    everything(&hosts, "first", &|words| of_cluster(&cluster, words));
    let mut people = People::before(&hosts, &|words| of_cluster(&cluster, words));
    let load = load(&hosts);
    std::thread::sleep(SECOND);
    // One whose replica is not needed for what follows.
    let slot = cluster.slot("users:online");
    let owner = cluster.owner(0, slot);
    let other = (owner + 1) % 3;
    replace(&cluster, other, (16_384 * other / 3) as u16);
    std::thread::sleep(SECOND);
    kill_owner(&mut cluster, slot, || people.meanwhile(&hosts));
    let healed = load.elapsed();
    connected(&hosts);
    std::thread::sleep(2 * SECOND);
    let book = report("a cluster, sharded: a master replaced, one killed", &mut hosts, load, healed);
    assert_counted(&hosts, &book);
    people.after(&|words| of_cluster(&cluster, words));
    everything(&hosts, "second", &|words| of_cluster(&cluster, words));
    assert_same_past(&hosts);
}

#[test]
fn a_cluster_with_streams_replaces_the_master_that_has_them() {
    let mut cluster = Cluster::start(3, true);
    let mut hosts = on_cluster(&cluster, "mode = \"streams\"");
    let mut people = People::before(&hosts, &|words| of_cluster(&cluster, words));
    let load = load(&hosts);
    std::thread::sleep(SECOND);
    let slot = cluster.slot("socket.io");
    let owner = cluster.owner(0, slot);
    replace(&cluster, owner, slot);
    std::thread::sleep(SECOND);
    // It has a replica again, the master that was.
    until("the old master follows", || cluster.nodes[owner].cli(&["INFO", "replication"]).contains("master_link_status:up"));
    kill_owner(&mut cluster, slot, || people.meanwhile(&hosts));
    let healed = load.elapsed();
    connected(&hosts);
    std::thread::sleep(2 * SECOND);
    let book = report("a cluster, streams: their master replaced, then killed", &mut hosts, load, healed);
    assert_nothing_lost(&hosts, &book);
    people.after(&|words| of_cluster(&cluster, words));
    everything(&hosts, "second", &|words| of_cluster(&cluster, words));
}

/// The master that the sentinels have made, after the first was killed.
fn kill_master(bed: &mut Sentinels, meanwhile: impl FnOnce()) {
    bed.nodes[0].kill();
    meanwhile();
    until("the replica is the master", || bed.nodes[1].cli(&["ROLE"]).starts_with("master"));
}

#[test]
fn sentinels_replace_the_master() {
    let mut bed = Sentinels::start(3);
    let mut hosts = on_sentinels(&bed, "");
    let mut people = People::before(&hosts, &|words| bed.nodes[0].cli(words));
    let load = load(&hosts);
    std::thread::sleep(SECOND);
    kill_master(&mut bed, || people.meanwhile(&hosts));
    let healed = load.elapsed();
    connected(&hosts);
    std::thread::sleep(2 * SECOND);
    let book = report("sentinels: the master killed", &mut hosts, load, healed);
    assert!(counted(&hosts, "uringcast_relay_dropped_total", &[]) >= book.missed.len() as u64, "each is counted by who said it");
    people.after(&|words| bed.nodes[1].cli(words));
    everything(&hosts, "second", &|words| bed.nodes[1].cli(words));
    assert_same_past(&hosts);
}

#[test]
fn sentinels_replace_the_master_that_has_the_streams() {
    let mut bed = Sentinels::start(3);
    let mut hosts = on_sentinels(&bed, "mode = \"streams\"");
    let mut people = People::before(&hosts, &|words| bed.nodes[0].cli(words));
    let load = load(&hosts);
    std::thread::sleep(SECOND);
    kill_master(&mut bed, || people.meanwhile(&hosts));
    let healed = load.elapsed();
    connected(&hosts);
    std::thread::sleep(2 * SECOND);
    let book = report("sentinels, streams: the master killed", &mut hosts, load, healed);
    assert_nothing_lost(&hosts, &book);
    people.after(&|words| bed.nodes[1].cli(words));
    everything(&hosts, "second", &|words| bed.nodes[1].cli(words));
}
