import { lpStream } from '@libp2p/utils'
import { multiaddr } from '@multiformats/multiaddr'
import {
  BidAnswer, CommitAnswer, Failure, FreeResources, JobEvent, LeaseAnswer, ReleaseAnswer, Success
} from './messages.js'
import {
  ALLOCATION, BID, GIB, NEWER_BID, RESOURCES, bidLeaseId, decode, describe, encode, hexadecimal, openBid, openHost,
  printLine, requestDigest, versions
} from './wire.js'

const IN_FLIGHT = 64
export const LIMIT = 60_000

export const runClient = async ({ first }, address) => {
  const { host } = await openHost()
  try {
    const connection = await host.dial(multiaddr(address), { signal: AbortSignal.timeout(LIMIT) })
    printLine(await ask(host.peerId.toString(), connection, first ? [BID] : [NEWER_BID, BID]))
  } finally {
    await host.stop()
  }
}

/** Goes the whole way, from what is free to what is free again. */
const ask = async (us, connection, bidVersions) => {
  const provider = connection.remotePeer.toString()
  const queries = await Client.open(connection, RESOURCES)
  const bids = await Client.open(connection, bidVersions)
  const allocations = await Client.open(connection, ALLOCATION)
  const found = { versions: versions(), peer_id: us, connection: describe(connection) }
  found.bid_protocol = bids.stream.protocol

  found.free_before = await queries.call('free', {}, FreeResources)
  found.pipelined = await queries.pipeline(IN_FLIGHT, 'free', FreeResources)
  found.unknown_operation = await code(queries.call('fly', {}, FreeResources))
  const envelope = await askBid(bids, found, provider)
  await takeAndReturn(queries, allocations, found, envelope)
  found.refusals = (await bids.call('bid_request', { ensemble: ensembleOn('too much', 99) }, BidAnswer)).refusals
  await Promise.all([queries, bids, allocations].map((client) => client.close()))
  return found
}

/** Asks for one bid, and believes nothing of it that can be computed or verified here. */
const askBid = async (bids, found, provider) => {
  const ensemble = ensembleOn('node-of-js', 1)
  const answer = await bids.call('bid_request', { ensemble }, BidAnswer)
  check(answer.bids.length === 1, `refused: ${JSON.stringify(answer.refusals)}`)
  const [envelope] = answer.bids
  Object.assign(found, await openBid(envelope))
  found.tampered_here = await openBid(tampered(envelope)).then(() => 'opened', (error) => error.message)
  found.digest = requestDigest(ensemble)
  found.lease_id = bidLeaseId(found.peer_id, found.digest, 'node-of-js', provider)
  const { bid, signer } = found
  check(signer === provider && bid.provider === provider, `signed by ${signer} for ${bid.provider}`)
  check(bid.requester === found.peer_id, `a bid for ${bid.requester}`)
  check(hexadecimal(bid.request_digest) === hexadecimal(found.digest), 'a bid on another request')
  check(bid.lease_id === found.lease_id, `lease id ${bid.lease_id} is not ${found.lease_id}`)
  return envelope
}

/** Commits, allocates and releases, and tries on the way what has to be refused. */
const takeAndReturn = async (queries, allocations, found, envelope) => {
  const commit = (bid) => allocations.call('commit', { bids: [bid], ttl: 60 }, CommitAnswer)
  found.tampered = await code(commit(tampered(envelope)))
  found.committed = (await commit(envelope)).leases[0]
  found.again = (await commit(envelope)).leases[0]
  const lease = { lease_id: found.lease_id, fence: found.committed.fence }
  found.stale_fence = await code(allocations.call('allocate', { ...lease, fence: lease.fence + 1 }, LeaseAnswer))
  found.allocated = (await allocations.call('allocate', lease, LeaseAnswer)).lease
  found.free_during = await queries.call('free', {}, FreeResources)
  found.released = (await allocations.call('release', lease, ReleaseAnswer)).lease
  found.free_after = await queries.call('free', {}, FreeResources)
}

export const ensembleOn = (node, cores) => ({
  id: 'ensemble-of-js',
  nonce: Date.now(),
  deadline: Math.floor(Date.now() / 1000) + 60,
  request: [{ node_id: node, resources: { cpu: { cores }, ram: { size: GIB }, disk: { size: GIB } } }]
})

/** Changes the last byte, which is the signature's. */
const tampered = (envelope) => {
  const changed = Uint8Array.from(envelope)
  changed[changed.length - 1] ^= 1
  return changed
}

export const check = (holds, otherwise) => {
  if (!holds) throw new Error(otherwise)
}

class RefusedError extends Error {
  constructor (error) {
    super(`${error.code}: ${error.message}`)
    this.code = error.code
  }
}

export const code = async (call) => {
  try {
    await call
    return 'not refused'
  } catch (error) {
    if (error instanceof RefusedError) return error.code
    throw error
  }
}

/** Asks on one stream. */
export class Client {
  static async open (connection, protocols) {
    const client = new Client()
    client.stream = await connection.newStream(protocols, { signal: AbortSignal.timeout(LIMIT) })
    client.frames = lpStream(client.stream, { maxDataLength: 2 ** 20 })
    client.last = 0
    return client
  }

  async close () {
    await this.stream.close()
  }

  async call (op, fields, Body) {
    const id = ++this.last
    await this.frames.write(encode({ id, op, ...fields }))
    const answer = await this.receive(Body)
    check(answer.id === id, `an answer to ${answer.id} instead of ${id}`)
    return answer.ok
  }

  /** Puts many requests into one write before it reads the first answer. */
  async pipeline (count, op, Body) {
    const waiting = new Set(Array.from({ length: count }, () => ++this.last))
    await this.frames.writeV([...waiting].map((id) => encode({ id, op })))
    while (waiting.size > 0) {
      const { id } = await this.receive(Body)
      check(waiting.delete(id), `an answer to ${id}, which was not asked`)
    }
    return count
  }

  /** The events of a watch, until its end. */
  async * watch (op, fields, Body) {
    const id = ++this.last
    await this.frames.write(encode({ id, op, ...fields }))
    for (;;) {
      const message = decode(await this.frames.read({ signal: AbortSignal.timeout(LIMIT) }))
      if (Object.hasOwn(message, 'error')) throw new RefusedError(Failure(message).error)
      if (!Object.hasOwn(message, 'event')) return
      yield JobEvent(Body)(message).event
    }
  }

  async receive (Body) {
    const message = decode(await this.frames.read({ signal: AbortSignal.timeout(LIMIT) }))
    if (Object.hasOwn(message, 'error')) throw new RefusedError(Failure(message).error)
    return Success(Body)(message)
  }
}
