package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

const (
	jobProtocol    protocol.ID = "/dms/job/1.0.0"
	tunnelProtocol protocol.ID = "/dms/tunnel/1.0.0"
)

// jobReport is what a client with a job prints.
type jobReport struct {
	PeerID   string    `json:"peer_id"`
	Digest   octets    `json:"digest"`
	Started  jobStatus `json:"started"`
	Again    jobStatus `json:"again"`
	Conflict string    `json:"conflict"`
	States   []string  `json:"states"`
	Answer   string    `json:"answer"`
	Closed   string    `json:"closed"`
	Output   string    `json:"output"`
	Rest     string    `json:"rest"`
	Exit     *jobExit  `json:"exit"`
	Released string    `json:"released"`
}

// runJob takes a node, runs the job in the file on it, speaks to its first port, and waits for its end. The job has to
// say "ready" when it listens, to answer what it is sent when that has ended, and to exit then.
func runJob(address, file string) error {
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var document job
	if err := json.Unmarshal(raw, &document); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), clientLimit)
	defer cancel()
	us, err := openHost()
	if err != nil {
		return err
	}
	defer us.Close()
	them, err := peer.AddrInfoFromString(address)
	if err != nil {
		return err
	}
	if err := us.Connect(ctx, *them); err != nil {
		return err
	}
	found, err := goThroughJob(ctx, us, them.ID, document)
	if err != nil {
		return err
	}
	return printLine(found)
}

func goThroughJob(ctx context.Context, us host.Host, provider peer.ID, document job) (*jobReport, error) {
	found := &jobReport{PeerID: us.ID().String()}
	bids, err := openStream(ctx, us, provider, choices.bidVersions...)
	if err != nil {
		return nil, err
	}
	defer bids.close()
	allocations, err := openStream(ctx, us, provider, allocationProtocol)
	if err != nil {
		return nil, err
	}
	defer allocations.close()
	asked := bidOn("job-of-go", 1)
	asked.Ensemble.Request[0].Executors = []string{document.Execution.Type}
	offers, err := call[bidAnswer](bids, asked)
	if err != nil {
		return nil, err
	}
	if len(offers.Bids) != 1 {
		return nil, fmt.Errorf("%d bids, and refusals: %v", len(offers.Bids), offers.Refusals)
	}
	taken, err := call[commitAnswer](allocations, commitOf(offers.Bids[0]))
	if err != nil {
		return nil, err
	}
	lease := taken.Leases[0]
	if _, err := call[leaseAnswer](allocations, leaseOf("allocate", lease.LeaseID, &lease.Fence)); err != nil {
		return nil, err
	}
	if found.Digest, err = jobDigest(document); err != nil {
		return nil, err
	}
	if err := startJob(ctx, us, provider, lease, document, found); err != nil {
		return nil, err
	}
	if err := followJob(ctx, us, provider, lease.LeaseID, document, found); err != nil {
		return nil, err
	}
	released, err := call[releaseAnswer](allocations, leaseOf("release", lease.LeaseID, &lease.Fence))
	found.Released = released.Lease.LeaseID
	return found, err
}

// startJob starts the job twice, which is one job, and another one, which is refused.
func startJob(ctx context.Context, us host.Host, provider peer.ID, lease lease, document job, found *jobReport) error {
	jobs, err := openStream(ctx, us, provider, jobProtocol)
	if err != nil {
		return err
	}
	defer jobs.close()
	for _, status := range []*jobStatus{&found.Started, &found.Again} {
		answer, err := call[jobAnswer](jobs, startOf(lease, document))
		if err != nil {
			return err
		}
		*status = answer.Job
	}
	document.Remove = !document.Remove
	_, err = call[jobAnswer](jobs, startOf(lease, document))
	found.Conflict = code(err)
	return nil
}

// followJob waits for the job to listen, speaks to it through a tunnel, and follows it to its end.
func followJob(
	ctx context.Context, us host.Host, provider peer.ID, leaseID string, document job, found *jobReport,
) error {
	logs, err := openStream(ctx, us, provider, jobProtocol)
	if err != nil {
		return err
	}
	defer logs.close()
	follow := &jobLogsRequest{head: head{Op: "job_logs"}, LeaseID: leaseID, Follow: true}
	if err := begin(logs, follow); err != nil {
		return err
	}
	for !strings.Contains(found.Output, "ready") {
		piece, _, err := next[jobOutput](logs)
		if err != nil {
			return err
		}
		if piece == nil {
			return fmt.Errorf("the job ended before it was ready: %s", found.Output)
		}
		found.Output += string(piece.Data)
	}
	port := document.Ports[0].Private
	if found.Answer, err = speak(ctx, us, provider, leaseID, port, "hello"); err != nil {
		return err
	}
	_, err = speak(ctx, us, provider, leaseID, port+1, "hello")
	found.Closed = code(err)
	watch, err := openStream(ctx, us, provider, jobProtocol)
	if err != nil {
		return err
	}
	defer watch.close()
	if err := begin(watch, &jobRequest{head: head{Op: "job_watch"}, LeaseID: leaseID}); err != nil {
		return err
	}
	for {
		answer, _, err := next[jobAnswer](watch)
		if err != nil {
			return err
		}
		if answer == nil {
			break
		}
		found.States = append(found.States, answer.Job.State)
		found.Exit = answer.Job.Exit
	}
	rest := &jobLogsRequest{head: head{Op: "job_logs"}, LeaseID: leaseID, Offset: uint64(len(found.Output))}
	if err := begin(watch, rest); err != nil {
		return err
	}
	for {
		piece, _, err := next[jobOutput](watch)
		if err != nil || piece == nil {
			return err
		}
		found.Rest += string(piece.Data)
	}
}

// speak sends text to a port of the job, ends it, and reads the answer to its end.
func speak(ctx context.Context, us host.Host, provider peer.ID, leaseID string, port uint64, text string) (string, error) {
	tunnel, err := openStream(ctx, us, provider, tunnelProtocol)
	if err != nil {
		return "", err
	}
	defer tunnel.close()
	if _, err := call[struct{}](tunnel, &tunnelRequest{head{Op: "tunnel"}, leaseID, port}); err != nil {
		return "", err
	}
	// From here on each byte is one of the connection. The reader of frames has read none of them.
	if _, err := tunnel.raw.Write([]byte(text)); err != nil {
		return "", err
	}
	if err := tunnel.raw.CloseWrite(); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(tunnel.raw)
	return string(answer), err
}

// begin sends a request that is answered with events.
func begin(s *stream, request numbered) error {
	request.number(s)
	return s.send(request)
}

// next is the next event, or nil at the end of the watch.
func next[B any](s *stream) (*B, uint64, error) {
	var message struct {
		ID    uint64     `json:"id"`
		Event *B         `json:"event"`
		Error *errorBody `json:"error"`
	}
	raw, err := s.receive()
	if err != nil {
		return nil, 0, err
	}
	if err := decoding.Unmarshal(raw, &message); err != nil {
		return nil, 0, err
	}
	if message.Error != nil {
		return nil, 0, message.Error
	}
	return message.Event, message.ID, nil
}

func startOf(lease lease, document job) *startJobRequest {
	return &startJobRequest{head: head{Op: "job_start"}, LeaseID: lease.LeaseID, Fence: lease.Fence, Job: document}
}

// jobDigest is taken over the document as it is sent, in which what has its default value is left out.
func jobDigest(document job) ([]byte, error) {
	raw, err := encoding.Marshal(document)
	if err != nil {
		return nil, err
	}
	var asSent map[string]any
	if err := decoding.Unmarshal(raw, &asSent); err != nil {
		return nil, err
	}
	return digest(asSent)
}
