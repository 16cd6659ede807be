import { lpStream } from '@libp2p/utils'
import { requests } from './messages.js'
import { StructError } from './structs.js'
import {
  ALLOCATION, BID, GIB, NEWER_BID, RESOURCES, bidLeaseId, decode, decodeAsSent, describe, encode, openBid, openHost,
  printLine, requestDigest, sealBid, versions
} from './wire.js'

// What this stub offers.
const MACHINE = { cpu: { cores: 4 }, ram: { size: 16 * GIB }, disk: { size: 100 * GIB } }

export const runProvider = async ({ first }) => {
  const { host, privateKey } = await openHost('/ip4/127.0.0.1/tcp/0')
  const provider = new Provider(host.peerId.toString(), privateKey)
  await host.handle(RESOURCES, serve({ free: () => provider.freeResources() }))
  // What the digest is taken over: in 1.0.0 a float stays a float.
  const bidVersions = { [BID]: decodeAsSent, ...(first ? {} : { [NEWER_BID]: decode }) }
  for (const [version, read] of Object.entries(bidVersions)) {
    await host.handle(version, serve({
      bid_request: (request, caller, raw) => provider.bid(request, caller, read(raw).ensemble)
    }))
  }
  await host.handle(ALLOCATION, serve({
    commit: (request, caller) => provider.commit(request, caller),
    allocate: (request, caller) => provider.allocate(request, caller),
    release: (request, caller) => provider.release(request, caller)
  }))
  host.addEventListener('connection:open', ({ detail: connection }) => {
    printLine({ connected: connection.remotePeer.toString(), connection: describe(connection) })
  })
  const addrs = host.getMultiaddrs().map((address) => address.toString())
  printLine({ peer_id: provider.peerId, addrs, versions: versions() })
  for await (const _ of process.stdin);
  await host.stop()
}

/** Answers the requests of a stream, one after another. */
const serve = (operations) => async (stream, connection) => {
  const frames = lpStream(stream, { maxDataLength: 2 ** 20 })
  const caller = connection.remotePeer.toString()
  try {
    while (true) {
      const raw = (await frames.read()).subarray()
      await frames.write(encode(await respond(operations, raw, caller)))
    }
  } catch {
    // The other side has nothing more to ask, or is gone.
    await stream.close().catch((error) => stream.abort(error))
  }
}

const respond = async (operations, raw, caller) => {
  let id = null
  try {
    const message = decode(raw)
    id = message.id ?? null
    if (!Object.hasOwn(operations, message.op)) throw new Refusal('unknown_operation', `no operation ${message.op}`)
    return { id, ok: await operations[message.op](requests[message.op](message), caller, raw) }
  } catch (error) {
    const code = error instanceof Refusal ? error.code : error instanceof StructError ? 'bad_message' : 'bad_cbor'
    return { id, error: { code, message: error.message, ...error.fields } }
  }
}

class Refusal extends Error {
  constructor (code, message, fields) {
    super(message)
    this.code = code
    this.fields = fields
  }
}

/** Keeps its promises in memory: enough to be asked, no more. */
class Provider {
  constructor (peerId, privateKey) {
    this.peerId = peerId
    this.privateKey = privateKey
    this.fence = 0
    this.leases = new Map()
    this.ended = new Map()
  }

  freeResources () {
    return { ...granted(this.free()), ports: 0, onboarded: true, draining: false, simulated: true }
  }

  async bid ({ ensemble, dry_run: dryRun }, caller, asSent) {
    const digest = requestDigest(asSent)
    const { offers, refusals } = this.offers(ensemble, digest, caller)
    if (dryRun) return { offers, refusals }
    return { bids: await Promise.all(offers.map((bid) => sealBid(bid, this.privateKey))), refusals }
  }

  /** Bids on the nodes in their order, as long as something is left. */
  offers (ensemble, digest, caller) {
    const offers = []
    const refusals = []
    let left = this.free()
    for (const node of ensemble.request) {
      const demand = node.resources ?? {}
      const short = shortages(demand, left)
      if (short.length > 0) {
        const reason = { code: 'resources', message: 'too little is free', shortages: short }
        refusals.push({ node_id: node.node_id, ...reason })
        continue
      }
      left = less(left, demand)
      offers.push({
        request_digest: digest,
        ensemble_id: ensemble.id,
        nonce: ensemble.nonce,
        node_id: node.node_id,
        lease_id: bidLeaseId(caller, digest, node.node_id, this.peerId),
        requester: caller,
        provider: this.peerId,
        demand,
        public_ports: node.public_ports ?? {},
        resources: granted(demand),
        valid_until: now() + 300,
        simulated: true
      })
    }
    return { offers, refusals }
  }

  /** Takes all bids or none. */
  async commit ({ bids: envelopes, ttl }, caller) {
    const bids = await Promise.all(envelopes.map((envelope) => this.ownBid(envelope, caller)))
    const fresh = bids.filter((bid) => !this.leases.has(bid.lease_id))
    let left = this.free()
    for (const { demand } of fresh) {
      const short = shortages(demand, left)
      if (short.length > 0) throw new Refusal('insufficient', 'too little is free', { shortages: short })
      left = less(left, demand)
    }
    for (const bid of fresh) this.take(bid, ttl)
    return { leases: bids.map((bid) => this.leases.get(bid.lease_id)) }
  }

  async ownBid (envelope, caller) {
    const { bid, signer } = await openBid(envelope).catch((error) => {
      throw new Refusal('bad_signature', error.message)
    })
    if (signer !== this.peerId || bid.provider !== this.peerId) throw new Refusal('not_my_bid', `the bid of ${signer}`)
    if (bid.requester !== caller) throw new Refusal('not_your_bid', `a bid for ${bid.requester}`)
    if (bid.valid_until < now()) throw new Refusal('bid_expired', 'it was valid once')
    return bid
  }

  take (bid, ttl) {
    const created = now()
    this.leases.set(bid.lease_id, {
      lease_id: bid.lease_id,
      holder: bid.requester,
      state: 'committed',
      demand: bid.demand,
      asked_ports: bid.public_ports,
      resources: bid.resources,
      fence: ++this.fence,
      created,
      ttl,
      deadline: created + ttl
    })
  }

  allocate (request, caller) {
    const { ttl, deadline, ...lease } = this.lease(request, caller)
    const allocated = { ...lease, state: 'allocated' }
    this.leases.set(lease.lease_id, allocated)
    return { lease: allocated }
  }

  release (request, caller) {
    const before = this.ended.get(request.lease_id)
    if (before?.holder === caller) return { lease: before }
    const { lease_id: id, holder, state, fence } = this.lease(request, caller)
    const ended = { lease_id: id, holder, state, fence, reason: 'released', ended: now() }
    this.leases.delete(id)
    this.ended.set(id, ended)
    return { lease: ended }
  }

  lease ({ lease_id: id, fence }, caller) {
    const lease = this.leases.get(id)
    if (lease === undefined) throw new Refusal('not_committed', 'no such lease', { lease_id: id })
    if (lease.holder !== caller) throw new Refusal('not_holder', "it is another's", { lease_id: id })
    if (fence !== undefined && fence !== lease.fence) {
      throw new Refusal('stale_fence', 'it is another lease', { lease_id: id })
    }
    return lease
  }

  free () {
    for (const [id, { deadline }] of this.leases) {
      if (deadline < now()) this.leases.delete(id)
    }
    return [...this.leases.values()].reduce((left, { demand }) => less(left, demand), MACHINE)
  }
}

// Amounts

const now = () => Date.now() / 1000

const amounts = (demand) => [demand.cpu?.cores ?? 0, demand.ram?.size ?? 0, demand.disk?.size ?? 0]

const less = (left, demand) => {
  const [cores, memory, space] = amounts(demand)
  return {
    cpu: { cores: left.cpu.cores - cores }, ram: { size: left.ram.size - memory }, disk: { size: left.disk.size - space }
  }
}

const granted = (demand) => {
  const [cores, memory, space] = amounts(demand)
  return { cpu: { cores }, ram: { size: memory }, disk: { size: space }, gpus: [] }
}

const shortages = (demand, left) => {
  const [cores, memory, space] = amounts(demand)
  const short = []
  if (cores > left.cpu.cores) {
    short.push({ dimension: 'cpu', asked: { cores }, free: left.cpu, total: MACHINE.cpu })
  }
  if (memory > left.ram.size) {
    short.push({ dimension: 'ram', asked: memory, free: left.ram.size, total: MACHINE.ram.size })
  }
  if (space > left.disk.size) {
    short.push({ dimension: 'disk', asked: space, free: left.disk.size, total: MACHINE.disk.size })
  }
  if (demand.gpus?.length > 0) {
    short.push({ dimension: 'gpus', asked: demand.gpus, free: [], total: [] })
  }
  return short
}
