package main

import (
	"encoding/hex"
	"encoding/json"

	"github.com/fxamacker/cbor/v2"
)

// The DMS's own resource structs, as the package `types` of its published history has them: what an older program may
// send instead of ours. Sizes were float64 for a while.

type goCPU struct {
	ClockSpeed   float64 `json:"clock_speed"`
	Cores        float32 `json:"cores"`
	Model        string  `json:"model"`
	Vendor       string  `json:"vendor"`
	Threads      int     `json:"threads"`
	Architecture string  `json:"architecture"`
	CacheSize    uint64  `json:"cache_size"`
}

type goRAM[N uint64 | float64] struct {
	Size       N      `json:"size"`
	ClockSpeed uint64 `json:"clock_speed"`
	Type       string `json:"type"`
}

type goDisk[N uint64 | float64] struct {
	Size       N      `json:"size"`
	Model      string `json:"model"`
	Vendor     string `json:"vendor"`
	Type       string `json:"type"`
	Interface  string `json:"interface"`
	ReadSpeed  N      `json:"read_speed"`
	WriteSpeed N      `json:"write_speed"`
}

type goGPU[N uint64 | float64] struct {
	Index      int    `json:"index"`
	Vendor     string `json:"vendor"`
	PCIAddress string `json:"pci_address"`
	Model      string `json:"model"`
	VRAM       N      `json:"vram"`
	UUID       string `json:"uuid"`
}

type goResources[N uint64 | float64] struct {
	CPU  goCPU      `json:"cpu"`
	GPUs []goGPU[N] `json:"gpus"`
	RAM  goRAM[N]   `json:"ram"`
	Disk goDisk[N]  `json:"disk"`
}

type goLocation struct {
	Accept []place `json:"accept"`
	Reject []place `json:"reject"`
}

type goPorts struct {
	Static  []int `json:"static"`
	Dynamic int   `json:"dynamic"`
}

type goNode[N uint64 | float64] struct {
	NodeID              string         `json:"node_id"`
	Executors           []string       `json:"executors"`
	Resources           goResources[N] `json:"resources"`
	Location            *goLocation    `json:"location"`
	PublicPorts         *goPorts       `json:"public_ports"`
	GeneralRequirements map[string]any `json:"general_requirements"`
}

type goEnsemble[N uint64 | float64] struct {
	ID            string      `json:"id"`
	Nonce         uint64      `json:"nonce"`
	Request       []goNode[N] `json:"request"`
	PeerExclusion []string    `json:"peer_exclusion"`
	Deadline      float64     `json:"deadline"`
}

func someResources[N uint64 | float64](cores float32, gpus []goGPU[N]) goResources[N] {
	return goResources[N]{
		CPU:  goCPU{ClockSpeed: 2.3e9, Cores: cores, Architecture: "amd64"},
		GPUs: gpus,
		RAM:  goRAM[N]{Size: 3 << 30},
		Disk: goDisk[N]{Size: 7 << 30},
	}
}

// printStructs prints the CBOR of such structs in each form that a Go program may choose, and the JSON of the same.
func printStructs() error {
	found := []map[string]any{}
	for _, mode := range []struct {
		name    string
		options cbor.EncOptions
	}{
		{"default", cbor.EncOptions{}},
		{"core deterministic", cbor.CoreDetEncOptions()},
		{"canonical", cbor.CanonicalEncOptions()},
	} {
		encoder, err := mode.options.EncMode()
		if err != nil {
			return err
		}
		gpus := []goGPU[float64]{{Vendor: "NVIDIA", VRAM: 24 << 30, UUID: "GPU-1"}}
		node := goNode[uint64]{NodeID: "n", Resources: someResources[uint64](1.3, nil)}
		floats := goNode[float64]{NodeID: "n", Resources: someResources(0.001, gpus)}
		floats.PublicPorts, floats.Location = &goPorts{}, &goLocation{}
		for _, one := range []struct {
			name  string
			value any
		}{
			{"resources of integers", someResources[uint64](0.1, nil)},
			{"resources of floats", someResources(0.1, gpus)},
			{"an ensemble of nil", goEnsemble[uint64]{ID: "e", Nonce: 7, Deadline: 2e9, Request: []goNode[uint64]{node}}},
			{"an ensemble of floats", goEnsemble[float64]{ID: "e", Nonce: 7, Deadline: 2e9, Request: []goNode[float64]{floats}}},
		} {
			data, err := encoder.Marshal(one.value)
			if err != nil {
				return err
			}
			text, err := json.Marshal(one.value)
			if err != nil {
				return err
			}
			found = append(found, map[string]any{"name": one.name, "encoding": mode.name, "cbor": hex.EncodeToString(data), "json": string(text)})
		}
	}
	return printLine(map[string]any{"structs": found})
}
