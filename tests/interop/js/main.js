// A client and a provider of the DMS's resource and bid protocols on js-libp2p, to show that the wire is nobody's own.
//
//   node main.js [--first] client MULTIADDR   asks a peer all that there is to ask, and prints one JSON object
//   node main.js job MULTIADDR FILE          runs the job in the file at a peer, and speaks to its port
//   node main.js [--first] provider           offers an imagined machine on loopback until its standard input
//                                                     ends
//   node main.js vectors FILE                         decodes the test vectors of the wire
//
// With --first it knows only the first version of each protocol.
import './with-resolvers.js'
import { parseArgs } from 'node:util'

const commands = {
  client: async (choices, address) => (await import('./client.js')).runClient(choices, address),
  job: async (choices, address, file) => (await import('./jobs.js')).runJob(choices, address, file),
  provider: async (choices) => (await import('./provider.js')).runProvider(choices),
  vectors: async (_, file) => (await import('./vectors.js')).checkVectors(file)
}

const options = { first: { type: 'boolean', default: false } }
const { values: choices, positionals: [name, ...words] } = parseArgs({ options, allowPositionals: true })
if (!Object.hasOwn(commands, name ?? '')) {
  console.error('usage: [--first] client MULTIADDR | job MULTIADDR FILE | provider | vectors FILE')
  process.exit(1)
}
try {
  await commands[name](choices, ...words)
} catch (error) {
  console.error(error)
  process.exitCode = 1
}
