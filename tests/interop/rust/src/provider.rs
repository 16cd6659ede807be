// A provider that keeps its promises in memory: enough to be asked, no more.

use crate::cbor::{Fields, decode, map, number};
use crate::wire::{
    ALLOCATION, BID, GIB, NEWER_BID, RESOURCES, bid_lease_id, open_bid, receive, request_digest, seal_bid, send,
};
use crate::{Result, host};
use ciborium::Value;
use futures::{AsyncWriteExt, StreamExt};
use libp2p::identity::Keypair;
use libp2p::swarm::SwarmEvent;
use libp2p::{Stream, StreamProtocol};
use serde_json::json;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::io::AsyncReadExt;

/// Cores, bytes of RAM and bytes of disk.
type Amounts = (f64, u64, u64);

const MACHINE: Amounts = (4.0, 16 * GIB, 100 * GIB);

pub async fn run(first: bool) -> Result<()> {
    let key = Keypair::generate_ed25519();
    let us = key.public().to_peer_id().to_string();
    let provider = Arc::new(Mutex::new(Provider::new(key.clone())));
    let mut swarm = host::open(key.clone())?;
    let mut control = swarm.behaviour().new_control();
    let served: &[&'static str] =
        if first { &[RESOURCES, BID, ALLOCATION] } else { &[RESOURCES, BID, NEWER_BID, ALLOCATION] };
    for protocol in served {
        let mut streams = control.accept(StreamProtocol::new(protocol))?;
        let provider = provider.clone();
        tokio::spawn(async move {
            while let Some((caller, stream)) = streams.next().await {
                tokio::spawn(serve(provider.clone(), protocol, caller.to_string(), stream));
            }
        });
    }
    swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse()?)?;
    let mut input = tokio::io::stdin();
    let mut ignored = [0; 64];
    loop {
        tokio::select! {
            read = input.read(&mut ignored) => if read? == 0 { return Ok(()) },
            event = swarm.select_next_some() => match event {
                SwarmEvent::NewListenAddr { address, .. } => {
                    let addrs = [format!("{address}/p2p/{us}")];
                    println!("{}", json!({ "peer_id": us, "addrs": addrs, "versions": host::versions() }));
                }
                SwarmEvent::ConnectionEstablished { peer_id, endpoint, .. } => {
                    let connection = host::describe(endpoint.get_remote_address(), &key)?;
                    println!("{}", json!({ "connected": peer_id.to_string(), "connection": connection }));
                }
                _ => {}
            }
        }
    }
}

/// Answers the requests of a stream, one after another.
async fn serve(provider: Arc<Mutex<Provider>>, protocol: &'static str, caller: String, mut stream: Stream) {
    while let Ok(Some(raw)) = receive(&mut stream).await {
        let answer = provider.lock().expect("no answer panics").respond(protocol, &caller, &raw);
        if send(&mut stream, &[answer]).await.is_err() {
            return;
        }
    }
    // The other side has nothing more to ask, or is gone.
    let _ = stream.close().await;
}

struct Refusal {
    code: &'static str,
    message: String,
    fields: Vec<(Value, Value)>,
}

fn refused<T>(code: &'static str, message: &str) -> std::result::Result<T, Refusal> {
    Err(Refusal { code, message: message.into(), fields: vec![] })
}

/// What the message lacks.
impl From<Box<dyn std::error::Error + Send + Sync>> for Refusal {
    fn from(error: Box<dyn std::error::Error + Send + Sync>) -> Self {
        Refusal { code: "bad_message", message: error.to_string(), fields: vec![] }
    }
}

type Answer<T = Value> = std::result::Result<T, Refusal>;

struct Provider {
    key: Keypair,
    peer_id: String,
    fence: u64,
    leases: HashMap<String, Value>,
    ended: HashMap<String, Value>,
}

impl Provider {
    fn new(key: Keypair) -> Provider {
        let peer_id = key.public().to_peer_id().to_string();
        Provider { key, peer_id, fence: 0, leases: HashMap::new(), ended: HashMap::new() }
    }

    fn respond(&mut self, protocol: &str, caller: &str, raw: &[u8]) -> Value {
        let (id, answered) = match decode(raw) {
            Ok(message) => {
                let answered = self.answer(protocol, caller, &message);
                (message.get("id").cloned().unwrap_or(Value::Null), answered)
            }
            Err(error) => (Value::Null, refused("bad_cbor", &error.to_string())),
        };
        match answered {
            Ok(body) => map([("id", id), ("ok", body)]),
            Err(Refusal { code, message, fields }) => {
                let mut error = vec![("code".into(), code.into()), ("message".into(), message.into())];
                error.extend(fields);
                map([("id", id), ("error", Value::Map(error))])
            }
        }
    }

    fn answer(&mut self, protocol: &str, caller: &str, message: &Value) -> Answer {
        match (protocol, message.text("op")?) {
            (RESOURCES, "free") => Ok(free_resources(self.free())),
            (BID | NEWER_BID, "bid_request") => self.bid(protocol, caller, message),
            (ALLOCATION, "commit") => self.commit(caller, message),
            (ALLOCATION, "allocate") => self.allocate(caller, message),
            (ALLOCATION, "release") => self.release(caller, message),
            (_, operation) => refused("unknown_operation", &format!("no operation {operation}")),
        }
    }

    // Bids

    /// Bids on the nodes in their order, as long as something is left.
    fn bid(&mut self, protocol: &str, caller: &str, message: &Value) -> Answer {
        let ensemble = message.need("ensemble")?;
        let digest = request_digest(protocol, ensemble);
        let (mut offers, mut refusals, mut left) = (vec![], vec![], self.free());
        for node in ensemble.list("request")? {
            let node_id = node.text("node_id")?;
            let demand = node.get("resources").cloned().unwrap_or_else(|| map([]));
            let asked = amounts(&demand)?;
            let short = shortages(asked, left);
            if !short.is_empty() {
                refusals.push(map([
                    ("node_id", node_id.into()),
                    ("code", "resources".into()),
                    ("message", "too little is free".into()),
                    ("shortages", Value::Array(short)),
                ]));
                continue;
            }
            left = less(left, asked);
            offers.push(map([
                ("request_digest", Value::Bytes(digest.clone())),
                ("ensemble_id", ensemble.text("id")?.into()),
                ("nonce", ensemble.unsigned("nonce")?.into()),
                ("node_id", node_id.into()),
                ("lease_id", bid_lease_id(caller, &digest, node_id, &self.peer_id).into()),
                ("requester", caller.into()),
                ("provider", self.peer_id.as_str().into()),
                ("demand", demand),
                ("public_ports", node.get("public_ports").cloned().unwrap_or_else(|| map([]))),
                ("resources", granted(asked)),
                ("valid_until", (now() + 300.0).into()),
                ("simulated", true.into()),
            ]));
        }
        let refusals = Value::Array(refusals);
        if message.get("dry_run").and_then(Value::as_bool).unwrap_or(false) {
            return Ok(map([("offers", Value::Array(offers)), ("refusals", refusals)]));
        }
        let sealed = offers.iter().map(|bid| Ok(Value::Bytes(seal_bid(bid, &self.key)?))).collect::<Result<_>>()?;
        Ok(map([("bids", Value::Array(sealed)), ("refusals", refusals)]))
    }

    fn own_bid(&self, envelope: &[u8], caller: &str) -> Answer {
        let (bid, signer) = match open_bid(envelope) {
            Ok(opened) => opened,
            Err(error) => return refused("bad_signature", &error.to_string()),
        };
        if signer != self.peer_id || bid.text("provider")? != self.peer_id {
            return refused("not_my_bid", &format!("the bid of {signer}"));
        }
        if bid.text("requester")? != caller {
            return refused("not_your_bid", "a bid for another requester");
        }
        if bid.number("valid_until")? < now() {
            return refused("bid_expired", "it was valid once");
        }
        Ok(bid)
    }

    // Leases

    /// Takes all bids or none.
    fn commit(&mut self, caller: &str, message: &Value) -> Answer {
        let (ttl, mut left, mut bids) = (message.number("ttl")?, self.free(), vec![]);
        for envelope in message.list("bids")? {
            let Some(envelope) = envelope.as_bytes() else {
                return refused("bad_message", "a bid is no byte string");
            };
            let bid = self.own_bid(envelope, caller)?;
            if !self.leases.contains_key(bid.text("lease_id")?) {
                let asked = amounts(bid.need("demand")?)?;
                let short = shortages(asked, left);
                if !short.is_empty() {
                    let fields = vec![("shortages".into(), Value::Array(short))];
                    return Err(Refusal { code: "insufficient", message: "too little is free".into(), fields });
                }
                left = less(left, asked);
            }
            bids.push(bid);
        }
        let leases = bids.iter().map(|bid| self.take(bid, ttl)).collect::<Result<_>>()?;
        Ok(map([("leases", Value::Array(leases))]))
    }

    fn take(&mut self, bid: &Value, ttl: f64) -> Result<Value> {
        let id = bid.text("lease_id")?;
        if let Some(taken) = self.leases.get(id) {
            return Ok(taken.clone());
        }
        self.fence += 1;
        let created = now();
        let lease = map([
            ("lease_id", id.into()),
            ("holder", bid.need("requester")?.clone()),
            ("state", "committed".into()),
            ("demand", bid.need("demand")?.clone()),
            ("asked_ports", bid.need("public_ports")?.clone()),
            ("resources", bid.need("resources")?.clone()),
            ("fence", self.fence.into()),
            ("created", created.into()),
            ("ttl", ttl.into()),
            ("deadline", (created + ttl).into()),
        ]);
        self.leases.insert(id.into(), lease.clone());
        Ok(lease)
    }

    fn allocate(&mut self, caller: &str, message: &Value) -> Answer {
        let lease = self.lease(caller, message)?;
        let timed = ["state", "ttl", "deadline"];
        let kept =
            lease.as_map().into_iter().flatten().filter(|(key, _)| !timed.contains(&key.as_text().unwrap_or("")));
        let mut entries: Vec<_> = kept.cloned().collect();
        entries.push(("state".into(), "allocated".into()));
        let allocated = Value::Map(entries);
        self.leases.insert(lease.text("lease_id")?.into(), allocated.clone());
        Ok(map([("lease", allocated)]))
    }

    fn release(&mut self, caller: &str, message: &Value) -> Answer {
        let id = message.text("lease_id")?;
        if let Some(before) =
            self.ended.get(id).filter(|ended| ended.text("holder").is_ok_and(|holder| holder == caller))
        {
            return Ok(map([("lease", before.clone())]));
        }
        let lease = self.lease(caller, message)?;
        let ended = map([
            ("lease_id", id.into()),
            ("holder", caller.into()),
            ("state", lease.need("state")?.clone()),
            ("fence", lease.need("fence")?.clone()),
            ("reason", "released".into()),
            ("ended", now().into()),
        ]);
        self.leases.remove(id);
        self.ended.insert(id.into(), ended.clone());
        Ok(map([("lease", ended)]))
    }

    fn lease(&self, caller: &str, message: &Value) -> Answer {
        let Some(lease) = self.leases.get(message.text("lease_id")?) else {
            return refused("not_committed", "no such lease");
        };
        if lease.text("holder")? != caller {
            return refused("not_holder", "it is another's");
        }
        if message.get("fence").is_some() && message.unsigned("fence")? != lease.unsigned("fence")? {
            return refused("stale_fence", "it is another lease");
        }
        Ok(lease.clone())
    }

    fn free(&mut self) -> Amounts {
        let now = now();
        self.leases.retain(|_, lease| lease.number("deadline").map_or(true, |deadline| deadline >= now));
        let taken = self.leases.values().filter_map(|lease| amounts(lease.need("demand").ok()?).ok());
        taken.fold(MACHINE, less)
    }
}

// Amounts

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is after 1970").as_secs_f64()
}

fn amounts(demand: &Value) -> Result<Amounts> {
    if demand.get("gpus").and_then(Value::as_array).is_some_and(|gpus| !gpus.is_empty()) {
        return Err("this machine has no GPU".into());
    }
    let of = |name: &str, unit: &str| demand.get(name).and_then(|part| part.get(unit)).and_then(number).unwrap_or(0.0);
    Ok((of("cpu", "cores"), of("ram", "size") as u64, of("disk", "size") as u64))
}

fn less(left: Amounts, taken: Amounts) -> Amounts {
    (left.0 - taken.0, left.1 - taken.1, left.2 - taken.2)
}

fn cpu(cores: f64) -> Value {
    map([("cores", cores.into())])
}

fn granted((cores, ram, disk): Amounts) -> Value {
    let size = |size: u64| map([("size", size.into())]);
    map([("cpu", cpu(cores)), ("ram", size(ram)), ("disk", size(disk)), ("gpus", Value::Array(vec![]))])
}

fn free_resources(left: Amounts) -> Value {
    let Value::Map(mut entries) = granted(left) else { unreachable!("a map") };
    for (name, value) in [("onboarded", true), ("draining", false), ("simulated", true)] {
        entries.push((name.into(), value.into()));
    }
    entries.push(("ports".into(), 0.into()));
    Value::Map(entries)
}

fn shortages(asked: Amounts, left: Amounts) -> Vec<Value> {
    let short = |dimension: &str, asked: Value, free: Value, total: Value| {
        map([("dimension", dimension.into()), ("asked", asked), ("free", free), ("total", total)])
    };
    let mut found = vec![];
    if asked.0 > left.0 {
        found.push(short("cpu", cpu(asked.0), cpu(left.0), cpu(MACHINE.0)));
    }
    if asked.1 > left.1 {
        found.push(short("ram", asked.1.into(), left.1.into(), MACHINE.1.into()));
    }
    if asked.2 > left.2 {
        found.push(short("disk", asked.2.into(), left.2.into(), MACHINE.2.into()));
    }
    found
}
