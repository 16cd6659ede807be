// The messages, with the DMS's field names: see schema.cddl.
import { any, bool, bytes, list, nullable, number, struct, text, uint } from './structs.js'

// What there is and what is asked for

const cpuFields = { clock_speed: uint, architecture: text, vendor: text, model: text, threads: uint }
const cpu = struct({ cores: number }, cpuFields)
const ram = struct({ size: uint }, { clock_speed: uint, type: text })
const disk = struct({ size: uint }, { model: text, vendor: text, type: text, interface: text })
const gpuFields = { vendor: text, model: text, exclusive: bool }
const gpu = struct({ uuid: text, vram: uint }, { ...gpuFields, index: uint, pci_address: text })

const demand = struct({}, {
  cpu: struct({}, { cores: number, architecture: text, clock_speed: uint }),
  ram: struct({}, { size: uint }),
  disk: struct({}, { size: uint }),
  gpus: list(struct({}, { ...gpuFields, vram: uint, uuid: text }))
})
const portDemand = struct({}, { static: list(uint), dynamic: uint })

const resourceFields = { cpu, ram, disk, gpus: list(gpu) }
export const Resources = struct(resourceFields)
export const FreeResources = struct({
  ...resourceFields, ports: uint, onboarded: bool, draining: bool, simulated: bool
})

// Bids

const place = struct({}, { continent: text, country: text, city: text })
const nodeRequest = struct({ node_id: text }, {
  executors: list(text),
  resources: demand,
  location: struct({}, { accept: list(place), reject: list(place) }),
  public_ports: portDemand,
  general_requirements: struct({}, { privileged_docker: bool })
})
export const EnsembleRequest = struct(
  { id: text, nonce: uint, deadline: number, request: list(nodeRequest) },
  { peer_exclusion: list(text) }
)
export const Bid = struct({
  request_digest: bytes,
  ensemble_id: text,
  nonce: uint,
  node_id: text,
  lease_id: text,
  requester: text,
  provider: text,
  demand,
  resources: Resources,
  valid_until: number
}, {
  public_ports: portDemand,
  price: nullable(struct({ micros_per_hour: uint, currency: text })),
  location: nullable(place),
  held: bool,
  simulated: bool
})
const shortage = struct({ dimension: text, asked: any, free: any, total: any })
const shortcomings = { shortages: list(shortage), retry_after: nullable(number) }
const reason = struct({ code: text, message: text }, { hint: text, ...shortcomings })
const refusal = struct({ node_id: text, code: text, message: text }, { ...shortcomings, reasons: list(reason) })
export const BidAnswer = struct({ bids: list(bytes), refusals: list(refusal) })
export const OfferAnswer = struct({ offers: list(Bid), refusals: list(refusal) })

// Leases

const limit = struct({ deadline: number, seconds: number })
const notice = struct({ deadline: number, seconds: number }, { reason: text, drain: bool })
export const Lease = struct({
  lease_id: text, holder: text, state: text, demand, resources: Resources, fence: uint, created: number
}, {
  asked_ports: portDemand,
  ports: list(uint),
  ttl: number,
  deadline: nullable(number),
  group: text,
  ensemble_id: text,
  node_id: text,
  processes: list(list(number)),
  accounts: list(text),
  until: nullable(number),
  longest: limit,
  notice,
  grace: bool
})
export const EndedLease = struct({
  lease_id: text, holder: text, state: text, fence: uint, reason: text, ended: number
}, { detail: text })
export const CommitAnswer = struct({ leases: list(Lease) })
export const LeaseAnswer = struct({ lease: Lease })
export const ReleaseAnswer = struct({ lease: EndedLease })
export const ListAnswer = struct({ leases: list(Lease), more: bool }, { evicted: list(EndedLease) })

// Peers and broadcasts

export const AdvertiseAnswer = struct({ again_after: number })
export const AdvertsAnswer = struct({ adverts: list(bytes) }, { next: text })

// Jobs

const jobPort = struct({ private: uint }, { public: uint })
const job = struct({
  execution: struct({ type: text }, {
    image: text, cmd: list(text), entrypoint: list(text), environment: list(text), working_directory: text
  })
}, {
  ports: list(jobPort),
  files: list(struct({ name: text, content: bytes }, { executable: bool })),
  network: text,
  remove: bool
})
const jobStatus = struct({
  lease_id: text, fence: uint, digest: bytes, executor: text, state: text, created: number, since: number
}, {
  exit: nullable(struct({ kind: text }, {
    code: nullable(number), signal: nullable(number), oom_kills: uint, message: text
  })),
  reason: text,
  output: uint,
  dropped: uint,
  ports: list(jobPort),
  usage: nullable(struct({ cpu_seconds: number, memory: uint }))
})
export const JobAnswer = struct({ job: jobStatus })
export const JobOutput = struct({ offset: uint, data: bytes }, { stream: text, dropped: uint })

// Requests and answers

const asked = { id: uint, op: text }
const leaseRequest = struct({ ...asked, lease_id: text }, { ttl: number, fence: uint })
const query = struct(asked)
export const requests = {
  free: query,
  onboarded: query,
  allocated: query,
  machine: query,
  usage: query,
  watch: query,
  cancel: struct({ ...asked, target: uint }),
  bid_request: struct({ ...asked, ensemble: EnsembleRequest }, { dry_run: bool, hold: number, ttl: number }),
  commit: struct({ ...asked, bids: list(bytes), ttl: number }, { token: bytes }),
  renew: leaseRequest,
  allocate: leaseRequest,
  release: leaseRequest,
  list: struct(asked, { after: text, limit: uint }),
  job_start: struct({ ...asked, lease_id: text, fence: uint, job }),
  job_status: struct({ ...asked, lease_id: text }),
  job_watch: struct({ ...asked, lease_id: text }),
  job_logs: struct({ ...asked, lease_id: text }, { offset: uint, follow: bool, limit: uint }),
  job_stop: struct({ ...asked, lease_id: text }, { grace: number }),
  tunnel: struct({ ...asked, lease_id: text, port: uint }),
  advertise: struct({ ...asked, advert: bytes }),
  adverts: struct(asked, { limit: uint, after: text, demand: nullable(demand) }),
  deliver_bids: struct({ ...asked, ensemble_id: text, nonce: uint, bids: list(bytes) }, { refusals: list(refusal) })
}

export const Success = (ok) => struct({ id: uint, ok })
export const Event = struct({ id: uint, event: FreeResources })
/** An event of job_watch or job_logs. */
export const JobEvent = (event) => struct({ id: uint, event })
export const Failure = struct({
  id: nullable(uint),
  error: struct({ code: text, message: text }, {
    retry_after: number, shortages: list(shortage), index: uint, path: text, lease_id: text,
    problems: list(text), hint: text, time: number
  })
})
