package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"reflect"

	"github.com/fxamacker/cbor/v2"
	"github.com/multiformats/go-varint"
)

type vectors struct {
	Frames []struct {
		Meaning string         `json:"meaning"`
		Hex     string         `json:"hex"`
		Message map[string]any `json:"message"`
	} `json:"frames"`
	Derived struct {
		RequestDeterministic string         `json:"request_deterministic"`
		RequestDigest        string         `json:"request_digest"`
		NewerRequestDigest   string         `json:"request_digest_1_1"`
		LeaseID              leaseIDVector  `json:"lease_id"`
		Bid                  map[string]any `json:"bid"`
		BidDeterministic     string         `json:"bid_deterministic"`
	} `json:"derived"`
}

type leaseIDVector struct {
	Requester string `json:"requester"`
	NodeID    string `json:"node_id"`
	Provider  string `json:"provider"`
	Is        string `json:"is"`
}

// checkVectors decodes every frame into the struct of its meaning: that struct's JSON has to be the meaning.
func checkVectors(path string) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var known vectors
	if err := json.Unmarshal(raw, &known); err != nil {
		return err
	}
	meanings := []string{}
	for _, frame := range known.Frames {
		if err := checkFrame(frame.Meaning, frame.Hex, frame.Message); err != nil {
			return fmt.Errorf("%s: %w", frame.Meaning, err)
		}
		meanings = append(meanings, frame.Meaning)
	}
	if err := checkDerived(known); err != nil {
		return err
	}
	return printLine(map[string]any{"versions": versions(), "frames": meanings, "derived": true})
}

func checkFrame(meaning, frame string, message map[string]any) error {
	raw, err := hex.DecodeString(frame)
	if err != nil {
		return err
	}
	length, read, err := varint.FromUvarint(raw)
	if err != nil || int(length) != len(raw)-read {
		return fmt.Errorf("a length of %d before %d bytes: %v", length, len(raw)-read, err)
	}
	into, err := structOf(meaning, message)
	if err != nil {
		return err
	}
	if err := decoding.Unmarshal(raw[read:], into); err != nil {
		return err
	}
	return means(into, message)
}

func means(decoded any, message map[string]any) error {
	text, err := json.Marshal(decoded)
	if err != nil {
		return err
	}
	var plain map[string]any
	if err := json.Unmarshal(text, &plain); err != nil {
		return err
	}
	if !reflect.DeepEqual(plain, message) {
		return fmt.Errorf("decoded as %s", text)
	}
	return nil
}

func structOf(meaning string, message map[string]any) (any, error) {
	if operation, ok := message["op"].(string); ok {
		return requestOf(operation)
	}
	if _, ok := message["error"]; ok {
		return new(failure), nil
	}
	known := map[string]any{
		"a lease that is charged to the grants of a token": new(success[leaseAnswer]),
		"the answer to free":                                           new(success[freeResources]),
		"the answer to allocated and usage":                            new(success[resources]),
		"bids on some nodes, refusals of others":                       new(success[bidAnswer]),
		"a refusal that names all its reasons":                         new(success[bidAnswer]),
		"a lease with the names of its ensemble and its node":          new(success[leaseAnswer]),
		"an allocation with a keep-alive, a longest time and a notice": new(success[leaseAnswer]),
		"the answer to list, with an evicted lease":                    new(success[listAnswer]),
		"the answer to a dry run":                                      new(success[offerAnswer]),
		"the answer to commit":                                         new(success[commitAnswer]),
		"the answer to renew and allocate":                             new(success[leaseAnswer]),
		"the answer to release":                                        new(success[releaseAnswer]),
		"the answer to list":                                           new(success[listAnswer]),
		"the answer to advertise":                                      new(success[advertiseAnswer]),
		"the answer to adverts":                                        new(success[advertsAnswer]),
		"the answer to deliver_bids":                                   new(success[struct{}]),
		"the answer to job_start and job_status":                       new(success[jobAnswer]),
		"the answer to job_stop":                                       new(success[jobAnswer]),
		"the answer to tunnel":                                         new(success[struct{}]),
		"an event of job_watch":                                        new(jobEvent[jobAnswer]),
		"an event of job_logs":                                         new(jobEvent[jobOutput]),
		"an event of watch":                                            new(event),
		"the end of watch":                                             new(success[struct{}]),
	}
	if into, ok := known[meaning]; ok {
		return into, nil
	}
	return nil, fmt.Errorf("no struct for this meaning")
}

func requestOf(operation string) (any, error) {
	switch operation {
	case "free", "onboarded", "allocated", "machine", "usage", "watch":
		return new(query), nil
	case "cancel":
		return new(cancelRequest), nil
	case "bid_request":
		return new(bidRequest[ensembleRequest]), nil
	case "commit":
		return new(commitRequest), nil
	case "renew", "allocate", "release":
		return new(leaseRequest), nil
	case "list":
		return new(listRequest), nil
	case "advertise":
		return new(advertiseRequest), nil
	case "adverts":
		return new(advertsRequest), nil
	case "deliver_bids":
		return new(deliverBidsRequest), nil
	case "job_start":
		return new(startJobRequest), nil
	case "job_status", "job_watch":
		return new(jobRequest), nil
	case "job_logs":
		return new(jobLogsRequest), nil
	case "job_stop":
		return new(stopJobRequest), nil
	case "tunnel":
		return new(tunnelRequest), nil
	}
	return nil, fmt.Errorf("no struct for the operation %s", operation)
}

// checkDerived computes what a requester and a provider compute: digests, lease ids, and the bytes under a signature.
func checkDerived(known vectors) error {
	derived := known.Derived
	for _, text := range []string{derived.RequestDeterministic, ensembleIn(known)} {
		raw, err := hex.DecodeString(text)
		if err != nil {
			return err
		}
		newer, err := requestDigest(newerBidProtocol, raw)
		if err != nil || hexadecimal(newer) != derived.NewerRequestDigest {
			return fmt.Errorf("request digest %x in 1.1.0: %v", newer, err)
		}
		sum, err := requestDigest(bidProtocol, raw)
		if err != nil || hexadecimal(sum) != derived.RequestDigest {
			return fmt.Errorf("request digest %x: %v", sum, err)
		}
		one := derived.LeaseID
		if id, err := bidLeaseID(one.Requester, sum, one.NodeID, one.Provider); err != nil || id != one.Is {
			return fmt.Errorf("lease id %s: %v", id, err)
		}
	}
	raw, err := hex.DecodeString(derived.BidDeterministic)
	if err != nil {
		return err
	}
	var offered bid
	if err := offered.UnmarshalRecord(raw); err != nil {
		return err
	}
	again, err := offered.MarshalRecord()
	if err != nil || !bytes.Equal(again, raw) {
		return fmt.Errorf("the bid is encoded as %x: %v", again, err)
	}
	return means(offered, derived.Bid)
}

// ensembleIn is the ensemble of the first bid request, in hexadecimal and in the order in which it was sent.
func ensembleIn(known vectors) string {
	for _, frame := range known.Frames {
		if frame.Message["op"] == "bid_request" {
			raw, _ := hex.DecodeString(frame.Hex)
			_, read, _ := varint.FromUvarint(raw)
			var request bidRequest[cbor.RawMessage]
			if decoding.Unmarshal(raw[read:], &request) == nil {
				return hexadecimal(request.Ensemble)
			}
		}
	}
	return ""
}
