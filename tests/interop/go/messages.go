package main

import "encoding/json"

// The messages, with the DMS's field names: see schema.cddl. The CBOR library reads the json tags too.

type head struct {
	ID uint64 `json:"id"`
	Op string `json:"op"`
}

type query struct{ head }

type cancelRequest struct {
	head
	Target uint64 `json:"target"`
}

// bidRequest holds an ensemble: as a struct where it is made, as raw CBOR where its digest is taken.
type bidRequest[E any] struct {
	head
	Ensemble E       `json:"ensemble"`
	DryRun   bool    `json:"dry_run,omitzero"`
	Hold     float64 `json:"hold,omitzero"`
	TTL      float64 `json:"ttl,omitzero"`
}

type commitRequest struct {
	head
	Bids  []octets `json:"bids"`
	TTL   float64  `json:"ttl"`
	Token octets   `json:"token,omitzero"`
}

// leaseRequest is renew, allocate or release.
type leaseRequest struct {
	head
	LeaseID string  `json:"lease_id"`
	TTL     float64 `json:"ttl,omitzero"`
	Fence   *uint64 `json:"fence,omitzero"`
}

type listRequest struct {
	head
	After string `json:"after,omitzero"`
	Limit uint64 `json:"limit,omitzero"`
}

type advertiseRequest struct {
	head
	Advert octets `json:"advert"`
}

type advertsRequest struct {
	head
	Limit  uint64  `json:"limit,omitzero"`
	After  string  `json:"after,omitzero"`
	Demand *demand `json:"demand,omitzero"`
}

type deliverBidsRequest struct {
	head
	EnsembleID string    `json:"ensemble_id"`
	Nonce      uint64    `json:"nonce"`
	Bids       []octets  `json:"bids"`
	Refusals   []refusal `json:"refusals,omitzero"`
}

// jobRequest is job_status or job_watch.
type jobRequest struct {
	head
	LeaseID string `json:"lease_id"`
}

type startJobRequest struct {
	head
	LeaseID string `json:"lease_id"`
	Fence   uint64 `json:"fence"`
	Job     job    `json:"job"`
}

type jobLogsRequest struct {
	head
	LeaseID string `json:"lease_id"`
	Offset  uint64 `json:"offset,omitzero"`
	Follow  bool   `json:"follow,omitzero"`
	Limit   uint64 `json:"limit,omitzero"`
}

type stopJobRequest struct {
	head
	LeaseID string   `json:"lease_id"`
	Grace   *float64 `json:"grace,omitzero"`
}

type tunnelRequest struct {
	head
	LeaseID string `json:"lease_id"`
	Port    uint64 `json:"port"`
}

type job struct {
	Execution execution `json:"execution"`
	Ports     []jobPort `json:"ports,omitzero"`
	Files     []jobFile `json:"files,omitzero"`
	Network   string    `json:"network,omitzero"`
	Remove    bool      `json:"remove,omitzero"`
}

type execution struct {
	Type             string   `json:"type"`
	Image            string   `json:"image,omitzero"`
	Cmd              []string `json:"cmd,omitzero"`
	Entrypoint       []string `json:"entrypoint,omitzero"`
	Environment      []string `json:"environment,omitzero"`
	WorkingDirectory string   `json:"working_directory,omitzero"`
}

type jobPort struct {
	Private uint64 `json:"private"`
	Public  uint64 `json:"public,omitzero"`
}

type jobFile struct {
	Name       string `json:"name"`
	Content    octets `json:"content"`
	Executable bool   `json:"executable,omitzero"`
}

type jobAnswer struct {
	Job jobStatus `json:"job"`
}

type jobStatus struct {
	LeaseID  string          `json:"lease_id"`
	Fence    uint64          `json:"fence"`
	Digest   octets          `json:"digest"`
	Executor string          `json:"executor"`
	State    string          `json:"state"`
	Created  float64         `json:"created"`
	Since    float64         `json:"since"`
	Exit     *jobExit        `json:"exit,omitzero"`
	Reason   string          `json:"reason,omitzero"`
	Output   uint64          `json:"output,omitzero"`
	Dropped  uint64          `json:"dropped,omitzero"`
	Ports    []jobPort       `json:"ports,omitzero"`
	Usage    *jobConsumption `json:"usage,omitzero"`
}

type jobExit struct {
	Kind     string `json:"kind"`
	Code     *int64 `json:"code,omitzero"`
	Signal   *int64 `json:"signal,omitzero"`
	OOMKills uint64 `json:"oom_kills,omitzero"`
	Message  string `json:"message,omitzero"`
}

type jobConsumption struct {
	CPUSeconds float64 `json:"cpu_seconds"`
	Memory     uint64  `json:"memory"`
}

type jobOutput struct {
	Offset  uint64 `json:"offset"`
	Data    octets `json:"data"`
	Stream  string `json:"stream,omitzero"`
	Dropped uint64 `json:"dropped,omitzero"`
}

// jobEvent is an event of job_watch or job_logs.
type jobEvent[B any] struct {
	ID    uint64 `json:"id"`
	Event B      `json:"event"`
}

type success[B any] struct {
	ID uint64 `json:"id"`
	OK B      `json:"ok"`
}

type event struct {
	ID    uint64        `json:"id"`
	Event freeResources `json:"event"`
}

type failure struct {
	ID    *uint64   `json:"id"`
	Error errorBody `json:"error"`
}

type errorBody struct {
	Code       string     `json:"code"`
	Message    string     `json:"message"`
	RetryAfter *float64   `json:"retry_after,omitzero"`
	Shortages  []shortage `json:"shortages,omitzero"`
	Index      *uint64    `json:"index,omitzero"`
	Path       string     `json:"path,omitzero"`
	LeaseID    string     `json:"lease_id,omitzero"`
	Problems   []string   `json:"problems,omitzero"`
	Hint       string     `json:"hint,omitzero"`
	Time       *float64   `json:"time,omitzero"`
}

func (e *errorBody) Error() string { return e.Code + ": " + e.Message }

type bidAnswer struct {
	Bids     []octets  `json:"bids"`
	Refusals []refusal `json:"refusals"`
}

type offerAnswer struct {
	Offers   []bid     `json:"offers"`
	Refusals []refusal `json:"refusals"`
}

type commitAnswer struct {
	Leases []lease `json:"leases"`
}

type leaseAnswer struct {
	Lease lease `json:"lease"`
}

type releaseAnswer struct {
	Lease endedLease `json:"lease"`
}

type listAnswer struct {
	Leases []lease `json:"leases"`
	More   bool    `json:"more"`
	// Leases that ended without their holder; since 1.1.0.
	Evicted []endedLease `json:"evicted,omitzero"`
}

type advertiseAnswer struct {
	AgainAfter float64 `json:"again_after"`
}

type advertsAnswer struct {
	Adverts []octets `json:"adverts"`
	Next    string   `json:"next,omitzero"`
}

type ensembleRequest struct {
	ID            string        `json:"id"`
	Nonce         uint64        `json:"nonce"`
	Deadline      float64       `json:"deadline"`
	Request       []nodeRequest `json:"request"`
	PeerExclusion []string      `json:"peer_exclusion,omitzero"`
}

type nodeRequest struct {
	NodeID      string     `json:"node_id"`
	Executors   []string   `json:"executors,omitzero"`
	Resources   demand     `json:"resources,omitzero"`
	Location    location   `json:"location,omitzero"`
	PublicPorts portDemand `json:"public_ports,omitzero"`
}

type location struct {
	Accept []place `json:"accept,omitzero"`
	Reject []place `json:"reject,omitzero"`
}

type place struct {
	Continent string `json:"continent,omitzero"`
	Country   string `json:"country,omitzero"`
	City      string `json:"city,omitzero"`
}

type bid struct {
	RequestDigest octets     `json:"request_digest"`
	EnsembleID    string     `json:"ensemble_id"`
	Nonce         uint64     `json:"nonce"`
	NodeID        string     `json:"node_id"`
	LeaseID       string     `json:"lease_id"`
	Requester     string     `json:"requester"`
	Provider      string     `json:"provider"`
	Demand        demand     `json:"demand"`
	PublicPorts   portDemand `json:"public_ports,omitzero"`
	Resources     resources  `json:"resources"`
	ValidUntil    float64    `json:"valid_until"`
	Price         *price     `json:"price,omitzero"`
	Location      *place     `json:"location,omitzero"`
	Held          bool       `json:"held,omitzero"`
	Simulated     bool       `json:"simulated,omitzero"`
}

type price struct {
	MicrosPerHour uint64 `json:"micros_per_hour"`
	Currency      string `json:"currency"`
}

type refusal struct {
	NodeID     string     `json:"node_id"`
	Code       string     `json:"code"`
	Message    string     `json:"message"`
	Shortages  []shortage `json:"shortages,omitzero"`
	RetryAfter *float64   `json:"retry_after,omitzero"`
	Reasons    []reason   `json:"reasons,omitzero"`
}

// reason is one of all reasons of a refusal, with what the requester can do about it.
type reason struct {
	Code       string     `json:"code"`
	Message    string     `json:"message"`
	Hint       string     `json:"hint,omitzero"`
	Shortages  []shortage `json:"shortages,omitzero"`
	RetryAfter *float64   `json:"retry_after,omitzero"`
}

// shortage has the same three amounts for every dimension, in the dimension's own type.
type shortage struct {
	Dimension string `json:"dimension"`
	Asked     any    `json:"asked"`
	Free      any    `json:"free"`
	Total     any    `json:"total"`
}

type demand struct {
	CPU  cpu   `json:"cpu,omitzero"`
	RAM  ram   `json:"ram,omitzero"`
	Disk disk  `json:"disk,omitzero"`
	GPUs []gpu `json:"gpus,omitzero"`
}

type portDemand struct {
	Static  []uint64 `json:"static,omitzero"`
	Dynamic uint64   `json:"dynamic,omitzero"`
}

type resources struct {
	CPU  cpu   `json:"cpu"`
	RAM  ram   `json:"ram"`
	Disk disk  `json:"disk"`
	GPUs []gpu `json:"gpus"`
}

type freeResources struct {
	resources
	Ports     uint64 `json:"ports"`
	Onboarded bool   `json:"onboarded"`
	Draining  bool   `json:"draining"`
	Simulated bool   `json:"simulated"`
}

type cpu struct {
	Cores        float64 `json:"cores,omitzero"`
	ClockSpeed   uint64  `json:"clock_speed,omitzero"`
	Architecture string  `json:"architecture,omitzero"`
	Vendor       string  `json:"vendor,omitzero"`
	Model        string  `json:"model,omitzero"`
	Threads      uint64  `json:"threads,omitzero"`
}

type ram struct {
	Size uint64 `json:"size"`
}

type disk struct {
	Size uint64 `json:"size"`
	Type string `json:"type,omitzero"`
}

type gpu struct {
	UUID      string `json:"uuid,omitzero"`
	Index     uint64 `json:"index,omitzero"`
	Vendor    string `json:"vendor,omitzero"`
	Model     string `json:"model,omitzero"`
	VRAM      uint64 `json:"vram,omitzero"`
	Exclusive bool   `json:"exclusive,omitzero"`
}

type lease struct {
	LeaseID    string       `json:"lease_id"`
	Holder     string       `json:"holder"`
	State      string       `json:"state"`
	Demand     demand       `json:"demand"`
	AskedPorts portDemand   `json:"asked_ports,omitzero"`
	Resources  resources    `json:"resources"`
	Ports      []uint64     `json:"ports,omitzero"`
	Fence      uint64       `json:"fence"`
	Created    float64      `json:"created"`
	TTL        float64      `json:"ttl,omitzero"`
	Deadline   *float64     `json:"deadline,omitzero"`
	Group      string       `json:"group,omitzero"`
	EnsembleID string       `json:"ensemble_id,omitzero"`
	NodeID     string       `json:"node_id,omitzero"`
	Processes  [][2]float64 `json:"processes,omitzero"`
	Accounts   []string     `json:"accounts,omitzero"`
	Until      *float64     `json:"until,omitzero"`
	Longest    *limit       `json:"longest,omitzero"`
	Notice     *notice      `json:"notice,omitzero"`
	Grace      bool         `json:"grace,omitzero"`
}

// limit is a deadline that no renewal moves.
type limit struct {
	Deadline float64 `json:"deadline"`
	Seconds  float64 `json:"seconds"`
}

// notice announces an eviction.
type notice struct {
	Deadline float64 `json:"deadline"`
	Seconds  float64 `json:"seconds"`
	Reason   string  `json:"reason,omitzero"`
	Drain    bool    `json:"drain,omitzero"`
}

type endedLease struct {
	LeaseID string  `json:"lease_id"`
	Holder  string  `json:"holder"`
	State   string  `json:"state"`
	Fence   uint64  `json:"fence"`
	Reason  string  `json:"reason"`
	Ended   float64 `json:"ended"`
	Detail  string  `json:"detail,omitzero"`
}

// octets is a byte string, which the JSON of the test vectors writes as {"hex": ...}.
type octets []byte

func (o octets) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]string{"hex": hexadecimal(o)})
}
