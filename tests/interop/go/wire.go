package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"

	"github.com/fxamacker/cbor/v2"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/record"
	"github.com/libp2p/go-msgio"
)

const (
	resourcesProtocol  protocol.ID = "/dms/resources/1.0.0"
	bidProtocol        protocol.ID = "/dms/bid/1.0.0"
	newerBidProtocol   protocol.ID = "/dms/bid/1.1.0"
	allocationProtocol protocol.ID = "/dms/allocation/1.0.0"

	bidDomain      = "dms-bid"
	bidPayloadType = "/dms/bid/1.0.0"

	maxFrame = 1 << 20
)

var (
	encoding = encodingMode()
	decoding = decodingMode()
)

// encodingMode is that of RFC 8949, 4.2.1, which digests and signatures need and nothing else minds.
func encodingMode() cbor.EncMode {
	options := cbor.CoreDetEncOptions()
	options.NilContainers = cbor.NilContainerAsEmpty
	mode, err := options.EncMode()
	if err != nil {
		panic(err)
	}
	return mode
}

func decodingMode() cbor.DecMode {
	mode, err := cbor.DecOptions{
		DupMapKey:      cbor.DupMapKeyEnforcedAPF,
		IndefLength:    cbor.IndefLengthForbidden,
		TagsMd:         cbor.TagsForbidden,
		NaN:            cbor.NaNDecodeForbidden,
		Inf:            cbor.InfDecodeForbidden,
		DefaultMapType: mapType,
	}.DecMode()
	if err != nil {
		panic(err)
	}
	return mode
}

// frames reads and writes the length-prefixed messages of one stream.
type frames struct {
	reader msgio.ReadCloser
	writer msgio.WriteCloser
}

func framesOf(stream network.Stream) frames {
	return frames{msgio.NewVarintReaderSize(stream, maxFrame), msgio.NewVarintWriter(stream)}
}

func (f frames) send(message any) error {
	raw, err := encoding.Marshal(message)
	if err != nil {
		return err
	}
	return f.writer.WriteMsg(raw)
}

func (f frames) receive() ([]byte, error) { return f.reader.ReadMsg() }

// requestDigest is taken over the ensemble's map as it was sent, with every key; in 1.1.0 a number is what it is worth.
func requestDigest(version protocol.ID, ensemble []byte) ([]byte, error) {
	var asSent map[string]any
	if err := decoding.Unmarshal(ensemble, &asSent); err != nil {
		return nil, err
	}
	if version == newerBidProtocol {
		return digest(wholeNumbers(asSent).(map[string]any))
	}
	return digest(asSent)
}

// wholeNumbers makes integers of the floats that are whole and less than 2^53.
func wholeNumbers(value any) any {
	switch one := value.(type) {
	case float64:
		if one == math.Trunc(one) && math.Abs(one) < 1<<53 {
			return int64(one)
		}
	case map[string]any:
		for key, item := range one {
			one[key] = wholeNumbers(item)
		}
	case []any:
		for index, item := range one {
			one[index] = wholeNumbers(item)
		}
	}
	return value
}

func bidLeaseID(requester string, requestDigest []byte, nodeID, provider string) (string, error) {
	sum, err := digest(map[string]any{
		"requester": requester, "request_digest": requestDigest, "node_id": nodeID, "provider": provider,
	})
	if err != nil {
		return "", err
	}
	return hexadecimal(sum)[:32], nil
}

func digest(value map[string]any) ([]byte, error) {
	raw, err := encoding.Marshal(value)
	sum := sha256.Sum256(raw)
	return sum[:], err
}

func hexadecimal(raw []byte) string { return hex.EncodeToString(raw) }

// A bid is a record of libp2p's signed envelopes.

func (b *bid) Domain() string { return bidDomain }

func (b *bid) Codec() []byte { return []byte(bidPayloadType) }

func (b *bid) MarshalRecord() ([]byte, error) { return encoding.Marshal(b) }

func (b *bid) UnmarshalRecord(raw []byte) error { return decoding.Unmarshal(raw, b) }

// openBid gives the bid in an envelope and the peer id of its signer, both as libp2p found them.
func openBid(raw []byte) (*bid, string, error) {
	var found bid
	envelope, err := record.ConsumeTypedEnvelope(raw, &found)
	if err != nil {
		return nil, "", err
	}
	if string(envelope.PayloadType) != bidPayloadType {
		return nil, "", fmt.Errorf("the envelope holds %q", envelope.PayloadType)
	}
	signer, err := peerIDOf(envelope.PublicKey)
	return &found, signer, err
}
