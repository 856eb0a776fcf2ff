//! The link to a Redis cluster: a connection for commands and one for subscriptions to each master that is needed, which follow the slots when
//! these move and the masters when one is replaced. What a node has not done because it was the wrong one is sent to the right one; what was
//! under way when a connection ended is never sent again, because nobody knows whether it was done.
//!
//! The client library has a cluster of its own. It sends commands again whose connection was lost, and whole pipelines of which one
//! command was redirected: what was published would be heard twice.
//!
//! Channels and patterns are all subscribed at one node, the *home*, which also gets what is published to channels: nodes pass on what one of
//! them is told in its order. Sharded channels are subscribed where their slots are.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::link::{Ear, Funnel, Line, LinkFault, Node, Packed, Task, Wire};
use super::request::{Call, Ended, Kind, Lost, Push, Reply, Request, Unheard};
use super::slots::{NodeAddress, Redirect, Route, Slots, route, slot, together};
use crate::limits::{REDIS_LOOK_MS, REDIS_REDIRECT_MS, REDIS_REDIRECTS_MAX, REDIS_SENTINEL_MS, REDIS_SLOTS_LOOK_MS};

type Replies = Result<Vec<Reply>, Lost>;

/// A node, which calls it was sent, and where their answers come.
type SentAgain = (NodeAddress, Vec<Option<usize>>, oneshot::Receiver<Replies>);

/// Where commands go.
#[derive(Debug)]
struct Map {
    slots: Slots,
    home: NodeAddress,
}

impl Map {
    /// The node a command is for; home while nobody has its slot, who then says so.
    fn target(&self, call: &Call) -> &NodeAddress {
        match route(call) {
            Route::Slot(slot) => self.slots.owner(slot).unwrap_or(&self.home),
            Route::Any | Route::All => &self.home,
        }
    }
}

/// The end of it for who sends and subscribes.
#[derive(Clone)]
pub(super) struct Cluster {
    map: Arc<ArcSwap<Map>>,
    wishes: mpsc::UnboundedSender<Wish>,
}

enum Wish {
    Send {
        to: NodeAddress,
        packed: Packed,
        done: oneshot::Sender<Replies>,
    },
    /// A node said that slots have moved.
    Look,
    Subscribe {
        kind: Kind,
        names: Vec<Vec<u8>>,
        done: oneshot::Sender<Result<(), Unheard>>,
    },
    Unsubscribe {
        kind: Kind,
        names: Vec<Vec<u8>>,
        done: oneshot::Sender<Result<(), Unheard>>,
    },
}

impl Cluster {
    /// Finds out who has which slots, connects to the home, and starts what follows them.
    pub(super) async fn connect(seeds: &[Node], funnel: &Arc<Funnel>) -> Result<(Self, Task<()>), LinkFault> {
        let mut fault = LinkFault::NoMaster;
        for seed in seeds {
            let found = async {
                let commands = Line::open(seed, None).await?;
                let slots = Slots::of(&commands.ask(&slots_call()).await?, &seed.address().0).ok_or(LinkFault::NoMaster)?;
                let home = slots.masters()[0].clone();
                let ears = Ear { funnel: funnel.clone(), unheard: None };
                // Whoever may not subscribe hears so here, and not again and again.
                Line::open(&seed.elsewhere(&home), Some(ears)).await?;
                Ok((slots, home))
            };
            match found.await {
                Ok((slots, home)) => {
                    let map = Arc::new(ArcSwap::from_pointee(Map { slots, home }));
                    let (wishes, wished) = mpsc::unbounded_channel();
                    let (nodes, happened) = Nodes::new(seeds.to_vec(), map.clone(), funnel.clone());
                    return Ok((Self { map, wishes }, Task(tokio::spawn(nodes.run(wished, happened)))));
                }
                Err(error) => fault = error,
            }
        }
        Err(fault)
    }

    fn sent(&self, to: &NodeAddress, packed: Packed) -> oneshot::Receiver<Replies> {
        let (done, receiver) = oneshot::channel();
        // The receiver says so when nobody is there any more.
        let _ = self.wishes.send(Wish::Send { to: to.clone(), packed, done });
        receiver
    }

    fn look(&self) {
        let _ = self.wishes.send(Wish::Look);
    }

    /// As [`super::link::Link::send`]. Calls for one node are sent to it in one write and stay in order.
    pub(super) fn send(&self, request: &Request) -> impl Future<Output = Replies> + Send + use<> {
        let cluster = self.clone();
        let map = self.map.load_full();
        let calls = request.calls.clone();
        let is_atomic = request.is_atomic;
        let sent = if is_atomic {
            vec![(Vec::new(), self.sent(&transaction_target(&map, &calls), Packed::of(&calls, true)))]
        } else {
            self.sent_by_node(&map, &calls)
        };
        let task =
            tokio::spawn(
                async move { if is_atomic { cluster.executed(calls, sent).await } else { cluster.gathered(&map, calls, sent).await } },
            );
        async move { task.await.unwrap_or(Err(Lost::Connection)) }
    }

    /// Sends each call to where it belongs; which calls went together, and where their answers come.
    fn sent_by_node(&self, map: &Map, calls: &[Call]) -> Vec<(Vec<usize>, oneshot::Receiver<Replies>)> {
        let mut nodes: Vec<(&NodeAddress, Vec<usize>)> = Vec::new();
        for (at, call) in calls.iter().enumerate() {
            let targets = if route(call) == Route::All { map.slots.masters() } else { std::slice::from_ref(map.target(call)) };
            for target in targets {
                match nodes.iter_mut().find(|(node, _)| *node == target) {
                    Some((_, of_node)) => of_node.push(at),
                    None => nodes.push((target, vec![at])),
                }
            }
        }
        let sent = nodes.into_iter().map(|(node, of_node)| {
            let calls: Vec<_> = of_node.iter().map(|at| calls[*at].clone()).collect();
            (of_node, self.sent(node, Packed::of(&calls, false)))
        });
        sent.collect()
    }

    /// Puts the answers in the order of the calls, and sends again what was at the wrong node.
    async fn gathered(&self, map: &Map, calls: Vec<Call>, sent: Vec<(Vec<usize>, oneshot::Receiver<Replies>)>) -> Replies {
        let mut answers: Vec<Vec<Reply>> = vec![Vec::new(); calls.len()];
        for (of_node, receiver) in sent {
            for (at, reply) in of_node.into_iter().zip(receiver.await.unwrap_or(Err(Lost::Connection))?) {
                answers[at].push(reply);
            }
        }
        let mut replies: Vec<Reply> = answers.into_iter().map(together).collect();
        let redirect = |at: usize, reply: &Reply, asked: &str| {
            let redirect = Redirect::of(reply, asked).filter(|_| route(&calls[at]) != Route::All)?;
            Some((at, redirect))
        };
        let mut wrong: Vec<_> =
            replies.iter().enumerate().filter_map(|(at, reply)| redirect(at, reply, &map.target(&calls[at]).0)).collect();
        for attempt in 1..=REDIS_REDIRECTS_MAX {
            if wrong.is_empty() {
                break;
            }
            self.look();
            if wrong.iter().any(|(_, redirect)| *redirect == Redirect::Again) {
                sleep(Duration::from_millis(REDIS_REDIRECT_MS * attempt)).await;
            }
            // All of them together, so that those that moved together stay in order and none waits for another's delay.
            for (to, again, receiver) in self.sent_again(&calls, std::mem::take(&mut wrong)) {
                for (at, reply) in again.into_iter().zip(receiver.await.unwrap_or(Err(Lost::Connection))?) {
                    let Some(at) = at else { continue };
                    wrong.extend(redirect(at, &reply, &to.0));
                    replies[at] = reply;
                }
            }
            wrong.sort_unstable_by_key(|(at, _)| *at);
        }
        Ok(replies)
    }

    /// Sends these calls to where they were said to belong; which went together (none of them is the word before one that is asked), and
    /// where their answers come.
    fn sent_again(&self, calls: &[Call], wrong: Vec<(usize, Redirect)>) -> Vec<SentAgain> {
        let map = self.map.load_full();
        let mut nodes: Vec<(NodeAddress, Vec<Option<usize>>)> = Vec::new();
        for (at, redirect) in wrong {
            let (to, is_asked) = match redirect {
                Redirect::Moved(to) => (to, false),
                Redirect::Ask(to) => (to, true),
                Redirect::Again => (map.target(&calls[at]).clone(), false),
            };
            let at_node = nodes.iter().position(|(node, _)| *node == to).unwrap_or_else(|| {
                nodes.push((to, Vec::new()));
                nodes.len() - 1
            });
            nodes[at_node].1.extend(is_asked.then_some(None).into_iter().chain([Some(at)]));
        }
        let sent = nodes.into_iter().map(|(node, again)| {
            let asking = Call::new("ASKING");
            let calls: Vec<_> = again.iter().map(|at| at.map_or(&asking, |at| &calls[at]).clone()).collect();
            let receiver = self.sent(&node, Packed::of(&calls, false));
            (node, again, receiver)
        });
        sent.collect()
    }

    /// The answers of a transaction, which is sent again as a whole when its node was the wrong one: nothing of it was done.
    async fn executed(&self, calls: Vec<Call>, sent: Vec<(Vec<usize>, oneshot::Receiver<Replies>)>) -> Replies {
        let mut receivers = sent.into_iter().map(|(_, receiver)| receiver);
        let mut receiver = receivers.next().ok_or(Lost::Connection)?;
        let mut attempt = 1;
        loop {
            let answers = receiver.await.unwrap_or(Err(Lost::Connection))?;
            let was_done = matches!(answers.last(), Some(Reply::List(_)));
            let redirect = (!was_done).then(|| answers.iter().find_map(|answer| Redirect::of(answer, ""))).flatten();
            let to = match redirect {
                Some(Redirect::Moved(to)) if attempt <= REDIS_REDIRECTS_MAX && !to.0.is_empty() => to,
                // A transaction cannot be asked elsewhere: when the slot has moved as a whole, it can.
                Some(_) if attempt <= REDIS_REDIRECTS_MAX => {
                    self.look();
                    sleep(Duration::from_millis(REDIS_REDIRECT_MS * attempt)).await;
                    transaction_target(&self.map.load(), &calls)
                }
                _ => return super::link::executed(answers, calls.len()),
            };
            self.look();
            receiver = self.sent(&to, Packed::of(&calls, true));
            attempt += 1;
        }
    }

    /// As [`super::link::Link::subscribe`].
    pub(super) fn subscribe(&self, kind: Kind, names: Vec<Vec<u8>>) -> impl Future<Output = Result<(), Unheard>> + Send + use<> {
        self.wished(move |done| Wish::Subscribe { kind, names, done })
    }

    /// As [`super::link::Link::unsubscribe`].
    pub(super) fn unsubscribe(&self, kind: Kind, names: Vec<Vec<u8>>) -> impl Future<Output = Result<(), Unheard>> + Send + use<> {
        self.wished(move |done| Wish::Unsubscribe { kind, names, done })
    }

    fn wished<F>(&self, wish: F) -> impl Future<Output = Result<(), Unheard>> + Send + use<F>
    where
        F: FnOnce(oneshot::Sender<Result<(), Unheard>>) -> Wish,
    {
        let (done, receiver) = oneshot::channel();
        let _ = self.wishes.send(wish(done));
        async move { receiver.await.unwrap_or(Err(Unheard::Lost)) }
    }
}

fn slots_call() -> Call {
    Call::new("CLUSTER").arg("SLOTS")
}

/// A transaction is for the node of its first key.
fn transaction_target(map: &Map, calls: &[Call]) -> NodeAddress {
    let keyed = calls.iter().find(|call| matches!(route(call), Route::Slot(_)));
    keyed.map_or(&map.home, |call| map.target(call)).clone()
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Role {
    Commands,
    Subscriptions,
}

/// Which connection; the number tells it from an earlier one to the same node.
#[derive(Clone, Debug, PartialEq, Eq)]
struct LineId {
    role: Role,
    node: NodeAddress,
    number: u64,
}

/// What happens to the connections.
enum Event {
    /// `None` when it could not be made.
    Opened {
        id: LineId,
        wire: Option<Wire>,
    },
    Answering {
        id: LineId,
        is_so: bool,
    },
    Ended {
        id: LineId,
        ended: Ended,
    },
    Slots(Option<Slots>),
    /// What the subscriptions that were sent over a connection were answered.
    Confirmed {
        id: LineId,
        kind: Kind,
        names: Vec<Vec<u8>>,
        replies: Replies,
    },
    /// A sharded channel was unsubscribed, asked for or not.
    Unheard {
        id: LineId,
        name: Vec<u8>,
    },
}

/// A connection that is there or being made. Dropped, it is closed.
struct Peer {
    number: u64,
    /// `None` while it is being made.
    wire: Option<Wire>,
    /// What waits for it.
    waiting: Vec<(Packed, oneshot::Sender<Replies>)>,
    task: AbortHandle,
    is_silent: bool,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Where a subscription is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Nowhere,
    Asked(NodeAddress),
    Heard(NodeAddress),
}

/// A subscription, and the calls that wait for it.
struct Want {
    place: Place,
    waiting: Vec<u64>,
}

/// Subscriptions that were asked for together and are not all confirmed.
struct Batch {
    left: usize,
    refused: Option<String>,
    done: oneshot::Sender<Result<(), Unheard>>,
}

/// What follows the cluster, in one task.
struct Nodes {
    seeds: Vec<Node>,
    map: Arc<ArcSwap<Map>>,
    funnel: Arc<Funnel>,
    peers: HashMap<(Role, NodeAddress), Peer>,
    wanted: HashMap<(Kind, Vec<u8>), Want>,
    batches: HashMap<u64, Batch>,
    /// True exactly when some of `wanted` may be nowhere.
    has_unplaced: bool,
    /// Nodes whose connection for commands was lost and is not there again: they may come back with less than they had.
    lost: HashSet<NodeAddress>,
    events: mpsc::UnboundedSender<Event>,
    tasks: JoinSet<()>,
    /// Connections and batches are counted together.
    number: u64,
    /// True exactly when somebody is being asked for the slots.
    is_looking: bool,
    /// True exactly when the slots are to be asked for at the next look.
    must_look: bool,
    /// Looks since the slots were asked for.
    looks: u64,
    /// How often nobody could say who has the slots, one after the other.
    failures: usize,
    is_silent: bool,
}

impl Nodes {
    fn new(seeds: Vec<Node>, map: Arc<ArcSwap<Map>>, funnel: Arc<Funnel>) -> (Self, mpsc::UnboundedReceiver<Event>) {
        let (events, happened) = mpsc::unbounded_channel();
        let nodes = Self {
            seeds,
            map,
            funnel,
            peers: HashMap::new(),
            wanted: HashMap::new(),
            batches: HashMap::new(),
            has_unplaced: false,
            lost: HashSet::new(),
            events,
            tasks: JoinSet::new(),
            number: 0,
            is_looking: false,
            must_look: false,
            looks: 0,
            failures: 0,
            is_silent: false,
        };
        (nodes, happened)
    }
}

impl Nodes {
    async fn run(mut self, mut wished: mpsc::UnboundedReceiver<Wish>, mut happened: mpsc::UnboundedReceiver<Event>) {
        let mut looks = interval(Duration::from_millis(REDIS_LOOK_MS));
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Watched from the start, so that it is noticed when it does not answer.
        let home = self.map.load().home.clone();
        self.peer(Role::Subscriptions, &home);
        self.peer(Role::Commands, &home);
        let ended = loop {
            tokio::select! {
                wish = wished.recv() => match wish {
                    Some(wish) => self.grant(wish),
                    None => return,
                },
                Some(event) = happened.recv() => {
                    if let Some(ended) = self.handle(event) {
                        break ended;
                    }
                }
                Some(_) = self.tasks.join_next() => {}
                _ = looks.tick() => self.look(),
            }
        };
        // The last word is the last: whatever passes messages on must have stopped.
        self.peers.clear();
        self.tasks.shutdown().await;
        self.funnel.tell(Push::Gone(ended));
    }

    fn grant(&mut self, wish: Wish) {
        match wish {
            Wish::Send { to, packed, done } => {
                let peer = self.peer(Role::Commands, &to);
                match &peer.wire {
                    Some(wire) => wire.deliver(packed, done),
                    None => peer.waiting.push((packed, done)),
                }
            }
            Wish::Look if self.looks > 0 => self.ask_for_slots(),
            Wish::Look => self.must_look = true,
            Wish::Subscribe { kind, names, done } => self.subscribe(kind, names, done),
            Wish::Unsubscribe { kind, names, done } => self.unsubscribe(kind, names, done),
        }
    }

    /// What comes of something that happened; the end, when it is the end.
    fn handle(&mut self, event: Event) -> Option<Ended> {
        match event {
            Event::Opened { id, wire: Some(wire) } => {
                if let Some(peer) = self.current(&id) {
                    peer.waiting.drain(..).for_each(|(packed, done)| wire.deliver(packed, done));
                    peer.wire = Some(wire);
                    if id.role == Role::Subscriptions {
                        self.ask_waiting(&id.node);
                    } else if self.lost.remove(&id.node) {
                        self.funnel.tell(Push::Replaced);
                    }
                }
            }
            Event::Opened { id, wire: None } => {
                if self.lose(&id) && self.map.load().home == id.node {
                    self.move_home();
                }
            }
            Event::Ended { ended: Ended::Flooded, .. } => return Some(Ended::Flooded),
            Event::Ended { id, .. } => {
                self.lose(&id);
            }
            Event::Answering { id, is_so } => {
                if let Some(peer) = self.current(&id) {
                    peer.is_silent = !is_so;
                    self.weigh_silence();
                }
            }
            Event::Slots(Some(slots)) => {
                (self.is_looking, self.failures) = (false, 0);
                self.follow(slots);
            }
            Event::Slots(None) => {
                (self.is_looking, self.must_look, self.failures) = (false, true, self.failures + 1);
                let is_alone = self.peers.values().all(|peer| peer.wire.is_none());
                return (is_alone && self.failures >= 2).then_some(Ended::Closed);
            }
            Event::Confirmed { id, kind, names, replies } => {
                if self.current(&id).is_some() {
                    self.confirm(&id, kind, names, replies);
                }
            }
            Event::Unheard { id, name } => {
                let is_wanted = self.wanted.get(&(Kind::Sharded, name.clone())).is_some_and(|want| want.place != Place::Nowhere);
                if self.current(&id).is_some() && is_wanted {
                    // Its slot has moved. The library takes what nobody asked for as the answer to something, so the connection is of no use now.
                    self.close_subscriptions(&id.node);
                    self.ask_for_slots();
                } else {
                    self.funnel.tell(Push::Unsubscribed { kind: Kind::Sharded, name });
                }
            }
        }
        None
    }

    /// The connection that an event is about, if it is still the one in use.
    fn current(&mut self, id: &LineId) -> Option<&mut Peer> {
        self.peers.get_mut(&(id.role, id.node.clone())).filter(|peer| peer.number == id.number)
    }

    /// The connection to a node, made if there is none.
    fn peer(&mut self, role: Role, node: &NodeAddress) -> &mut Peer {
        let key = (role, node.clone());
        if !self.peers.contains_key(&key) {
            self.number += 1;
            let id = LineId { role, node: node.clone(), number: self.number };
            let target = self.settings_of(node);
            let ear = (role == Role::Subscriptions).then(|| self.ear(&id));
            let task = self.tasks.spawn(keep(id, target, ear, self.events.clone()));
            let peer = Peer { number: self.number, wire: None, waiting: Vec::new(), task, is_silent: false };
            self.peers.insert(key.clone(), peer);
        }
        self.peers.get_mut(&key).expect("it was put there if it was missing")
    }

    fn ear(&self, id: &LineId) -> Ear {
        let (events, id) = (self.events.clone(), id.clone());
        let unheard = move |name| {
            let _ = events.send(Event::Unheard { id: id.clone(), name });
        };
        Ear { funnel: self.funnel.clone(), unheard: Some(Box::new(unheard)) }
    }

    /// How to talk to a node: as to the seed that it is, else as to the first.
    fn settings_of(&self, node: &NodeAddress) -> Node {
        let seed = self.seeds.iter().find(|seed| seed.address() == *node);
        seed.unwrap_or(&self.seeds[0]).elsewhere(node)
    }

    /// A connection is no more, or could not be made; false when it was not in use anyway.
    fn lose(&mut self, id: &LineId) -> bool {
        let Some(peer) = self.current(id) else { return false };
        let was_there = peer.wire.is_some();
        self.peers.remove(&(id.role, id.node.clone()));
        self.must_look = true;
        if id.role == Role::Subscriptions {
            self.displace(&id.node);
        } else if was_there {
            self.lost.insert(id.node.clone());
        }
        self.weigh_silence();
        true
    }

    /// Ends a node's connection for subscriptions; they go elsewhere.
    fn close_subscriptions(&mut self, node: &NodeAddress) {
        self.peers.remove(&(Role::Subscriptions, node.clone()));
        self.displace(node);
    }

    /// Subscriptions at a node are nowhere now, which is told of those that were heard.
    fn displace(&mut self, node: &NodeAddress) {
        let mut interrupted: HashMap<Kind, Vec<Vec<u8>>> = HashMap::new();
        for ((kind, name), want) in &mut self.wanted {
            match &want.place {
                Place::Heard(at) if at == node => interrupted.entry(*kind).or_default().push(name.clone()),
                Place::Asked(at) if at == node => {}
                _ => continue,
            }
            want.place = Place::Nowhere;
            self.has_unplaced = true;
        }
        for (kind, names) in interrupted {
            self.funnel.tell(Push::Interrupted { kind, names });
        }
    }

    fn is_silent_at(&self, node: &NodeAddress) -> bool {
        [Role::Commands, Role::Subscriptions].iter().any(|role| self.peers.get(&(*role, node.clone())).is_some_and(|peer| peer.is_silent))
    }

    /// Makes the next master that answers, as far as is known, the home.
    fn move_home(&mut self) {
        let map = self.map.load_full();
        let masters = map.slots.masters();
        let after = masters.iter().position(|master| *master == map.home).map_or(0, |at| at + 1);
        let mut others = (0..masters.len()).map(|offset| &masters[(after + offset) % masters.len()]);
        let next = others.find(|master| **master != map.home && !self.is_silent_at(master));
        if let Some(home) = next.cloned() {
            self.map.store(Arc::new(Map { slots: map.slots.clone(), home }));
            self.close_subscriptions(&map.home);
        }
    }

    /// A home that does not answer is left; when there is no other, that is told.
    fn weigh_silence(&mut self) {
        if self.is_silent_at(&self.map.load().home) {
            self.move_home();
        }
        let is_silent = self.is_silent_at(&self.map.load().home);
        if is_silent != self.is_silent {
            self.is_silent = is_silent;
            self.funnel.tell(if is_silent { Push::Silent } else { Push::Answering });
        }
    }

    fn look(&mut self) {
        self.looks += 1;
        let is_time = self.looks * REDIS_LOOK_MS >= REDIS_SLOTS_LOOK_MS;
        if self.must_look || is_time || self.peers.values().any(|peer| peer.is_silent) {
            self.ask_for_slots();
        }
        // Also where there is nothing to say to it.
        for node in self.lost.clone() {
            self.peer(Role::Commands, &node);
        }
        self.place();
    }

    /// Asks who has the slots: whom it talks to already, then everybody it knows of.
    fn ask_for_slots(&mut self) {
        if self.is_looking {
            self.must_look = true;
            return;
        }
        (self.is_looking, self.must_look, self.looks) = (true, false, 0);
        let open = self.peers.iter().filter(|((role, _), peer)| *role == Role::Commands && !peer.is_silent);
        let mut wires: Vec<_> = open.filter_map(|((_, node), peer)| Some((node.0.clone(), peer.wire.clone()?))).collect();
        // Not always the same one: it may have been cut off from the others.
        let turns = self.number as usize % wires.len().max(1);
        wires.rotate_left(turns);
        self.number += 1;
        let known: HashSet<_> = self.map.load().slots.masters().iter().cloned().chain(self.seeds.iter().map(Node::address)).collect();
        let known: Vec<_> = known.iter().map(|node| self.settings_of(node)).collect();
        let events = self.events.clone();
        self.tasks.spawn(async move {
            let _ = events.send(Event::Slots(slots(wires, known).await));
        });
    }

    /// Takes over who has the slots.
    fn follow(&mut self, slots: Slots) {
        let map = self.map.load_full();
        if slots != map.slots {
            let is_home = slots.masters().contains(&map.home);
            let home = if is_home { map.home.clone() } else { slots.masters()[0].clone() };
            // Who is not a master any more does nothing for us; what waits there is lost.
            self.peers.retain(|(role, node), _| *role == Role::Subscriptions || slots.masters().contains(node));
            let mut left: HashSet<NodeAddress> = HashSet::new();
            for ((kind, name), want) in &self.wanted {
                let (Place::Asked(at) | Place::Heard(at)) = &want.place else { continue };
                let belongs = if *kind == Kind::Sharded { slots.owner(slot(name)) } else { Some(&home) };
                if belongs != Some(at) {
                    left.insert(at.clone());
                }
            }
            self.lost.retain(|node| slots.masters().contains(node));
            // Before anything goes to the new ones.
            self.funnel.tell(Push::Replaced);
            self.map.store(Arc::new(Map { slots, home }));
            left.iter().for_each(|node| self.close_subscriptions(node));
            self.weigh_silence();
        }
        self.place();
    }

    /// Sends the subscriptions that are nowhere to where they belong.
    fn place(&mut self) {
        if !std::mem::take(&mut self.has_unplaced) {
            return;
        }
        let map = self.map.load_full();
        let mut placed: HashMap<(NodeAddress, Kind), Vec<Vec<u8>>> = HashMap::new();
        for ((kind, name), want) in self.wanted.iter_mut().filter(|(_, want)| want.place == Place::Nowhere) {
            let node = if *kind == Kind::Sharded { map.slots.owner(slot(name)) } else { Some(&map.home) };
            let Some(node) = node else {
                (self.has_unplaced, self.must_look) = (true, true);
                continue;
            };
            want.place = Place::Asked(node.clone());
            placed.entry((node.clone(), *kind)).or_default().push(name.clone());
        }
        for ((node, kind), names) in placed {
            // A connection that is being made takes with it what belongs to it when it is there.
            let peer = self.peer(Role::Subscriptions, &node);
            if let Some(wire) = peer.wire.clone() {
                let number = peer.number;
                self.ask(&wire, LineId { role: Role::Subscriptions, node, number }, kind, names);
            }
        }
    }

    /// Sends what waited for a connection.
    fn ask_waiting(&mut self, node: &NodeAddress) {
        let mut waiting: HashMap<Kind, Vec<Vec<u8>>> = HashMap::new();
        for ((kind, name), want) in &self.wanted {
            if want.place == Place::Asked(node.clone()) {
                waiting.entry(*kind).or_default().push(name.clone());
            }
        }
        let peer = self.peer(Role::Subscriptions, node);
        let Some(wire) = peer.wire.clone() else { return };
        let id = LineId { role: Role::Subscriptions, node: node.clone(), number: peer.number };
        for (kind, names) in waiting {
            self.ask(&wire, id.clone(), kind, names);
        }
    }

    fn ask(&mut self, wire: &Wire, id: LineId, kind: Kind, names: Vec<Vec<u8>>) {
        let sent = wire.send(Packed::subscriptions(kind, true, &names));
        let events = self.events.clone();
        self.tasks.spawn(async move {
            let replies = sent.await;
            let _ = events.send(Event::Confirmed { id, kind, names, replies });
        });
    }

    fn confirm(&mut self, id: &LineId, kind: Kind, names: Vec<Vec<u8>>, replies: Replies) {
        // That the connection is lost is told as well, and then everything goes elsewhere.
        let Ok(replies) = replies else { return };
        for (name, reply) in names.into_iter().zip(replies) {
            let key = (kind, name);
            let Some(want) = self.wanted.get_mut(&key).filter(|want| want.place == Place::Asked(id.node.clone())) else { continue };
            let refused = match (&reply, Redirect::of(&reply, &id.node.0)) {
                (_, Some(_)) => {
                    want.place = Place::Nowhere;
                    (self.has_unplaced, self.must_look) = (true, true);
                    continue;
                }
                (Reply::Error(text), None) => Some(text.clone()),
                _ => None,
            };
            want.place = Place::Heard(id.node.clone());
            let waiting = std::mem::take(&mut want.waiting);
            if refused.is_some() {
                self.wanted.remove(&key);
            }
            self.settle(waiting, refused.as_deref());
        }
    }

    /// One name more of these batches is confirmed, or refused.
    fn settle(&mut self, batches: Vec<u64>, refused: Option<&str>) {
        for number in batches {
            let Some(batch) = self.batches.get_mut(&number) else { continue };
            batch.left -= 1;
            batch.refused = batch.refused.take().or_else(|| refused.map(str::to_owned));
            if batch.left == 0
                && let Some(batch) = self.batches.remove(&number)
            {
                // Whoever asked may have gone.
                let _ = batch.done.send(batch.refused.map_or(Ok(()), |text| Err(Unheard::Refused(text))));
            }
        }
    }

    fn subscribe(&mut self, kind: Kind, names: Vec<Vec<u8>>, done: oneshot::Sender<Result<(), Unheard>>) {
        self.number += 1;
        let mut left = 0;
        for name in names {
            let want = self.wanted.entry((kind, name)).or_insert(Want { place: Place::Nowhere, waiting: Vec::new() });
            if !matches!(want.place, Place::Heard(_)) {
                want.waiting.push(self.number);
                left += 1;
            }
            self.has_unplaced |= want.place == Place::Nowhere;
        }
        if left == 0 {
            let _ = done.send(Ok(()));
        } else {
            self.batches.insert(self.number, Batch { left, refused: None, done });
        }
        self.place();
    }

    fn unsubscribe(&mut self, kind: Kind, names: Vec<Vec<u8>>, done: oneshot::Sender<Result<(), Unheard>>) {
        let mut at_nodes: HashMap<NodeAddress, Vec<Vec<u8>>> = HashMap::new();
        for name in names {
            let Some(want) = self.wanted.remove(&(kind, name.clone())) else { continue };
            self.settle(want.waiting, Some("unsubscribed"));
            match want.place {
                Place::Asked(node) | Place::Heard(node) => at_nodes.entry(node).or_default().push(name),
                Place::Nowhere => self.funnel.tell(Push::Unsubscribed { kind, name }),
            }
        }
        let mut sent = Vec::new();
        for (node, names) in at_nodes {
            match self.peers.get(&(Role::Subscriptions, node)).and_then(|peer| peer.wire.as_ref()) {
                Some(wire) => sent.push(wire.send(Packed::subscriptions(kind, false, &names))),
                None => names.into_iter().for_each(|name| self.funnel.tell(Push::Unsubscribed { kind, name })),
            }
        }
        self.tasks.spawn(async move {
            let mut refused = None;
            for replies in sent {
                // With its connection a subscription is gone too.
                let replies = replies.await.unwrap_or_default();
                refused = refused.or_else(|| replies.iter().find_map(|reply| reply.error().map(str::to_owned)));
            }
            let _ = done.send(refused.map_or(Ok(()), |text| Err(Unheard::Refused(text))));
        });
    }
}

/// Makes a connection and watches it until it ends.
async fn keep(id: LineId, target: Node, ear: Option<Ear>, events: mpsc::UnboundedSender<Event>) {
    let tell = |event| {
        // Nobody hears it when the link is over.
        let _ = events.send(event);
    };
    let mut line = match Line::open(&target, ear).await {
        Ok(line) => line,
        Err(_) => return tell(Event::Opened { id, wire: None }),
    };
    tell(Event::Opened { id: id.clone(), wire: Some(line.wire()) });
    let ended = line.watch(|is_so| tell(Event::Answering { id: id.clone(), is_so })).await;
    line.stop().await;
    tell(Event::Ended { id, ended });
}

/// Who has the slots, as the first says that answers.
async fn slots(wires: Vec<(String, Wire)>, known: Vec<Node>) -> Option<Slots> {
    let patience = Duration::from_millis(REDIS_SENTINEL_MS);
    for (host, wire) in wires {
        let asked = timeout(patience, wire.send(Packed::of(&[slots_call()], false))).await;
        if let Ok(Ok(replies)) = asked
            && let Some(slots) = replies.first().and_then(|reply| Slots::of(reply, &host))
        {
            return Some(slots);
        }
    }
    for node in known {
        let ask = async { Line::open(&node, None).await?.ask(&slots_call()).await };
        if let Ok(Ok(reply)) = timeout(patience, ask).await
            && let Some(slots) = Slots::of(&reply, &node.address().0)
        {
            return Some(slots);
        }
    }
    None
}
