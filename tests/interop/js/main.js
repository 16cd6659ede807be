// A client and a provider of the DMS's resource and bid protocols on js-libp2p, to show that the wire is nobody's own.
//
//   node main.js client MULTIADDR   asks a peer all that there is to ask, and prints one JSON object
//   node main.js provider           offers an imagined machine on loopback until its standard input ends
//   node main.js vectors FILE       decodes the test vectors of the wire
import './with-resolvers.js'

const commands = {
  client: async (address) => (await import('./client.js')).runClient(address),
  provider: async () => (await import('./provider.js')).runProvider(),
  vectors: async (file) => (await import('./vectors.js')).checkVectors(file)
}

const [name, argument] = process.argv.slice(2)
if (!Object.hasOwn(commands, name ?? '')) {
  console.error('usage: client MULTIADDR | provider | vectors FILE')
  process.exit(1)
}
try {
  await commands[name](argument)
} catch (error) {
  console.error(error)
  process.exitCode = 1
}
