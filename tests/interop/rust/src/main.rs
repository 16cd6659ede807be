// A client and a provider of the DMS's resource and bid protocols on rust-libp2p, to show that the wire is nobody's own.
//
//   interop-rust [--first] client MULTIADDR   asks a peer all that there is to ask, and prints one JSON object
//   interop-rust [--first] provider           offers an imagined machine on loopback until its standard input ends
//   interop-rust vectors FILE                 decodes the test vectors of the wire
//
// With --first it knows only the first version of each protocol.

mod cbor;
mod client;
mod host;
mod provider;
mod vectors;
mod wire;

use std::error::Error;

pub type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let first = arguments.first().is_some_and(|word| word == "--first");
    let words: Vec<&str> = arguments.iter().skip(usize::from(first)).map(String::as_str).collect();
    match words[..] {
        ["client", address] => client::run(first, address).await,
        ["provider"] => provider::run(first).await,
        ["vectors", file] => vectors::check(file),
        _ => Err("usage: [--first] client MULTIADDR | provider | vectors FILE".into()),
    }
}
