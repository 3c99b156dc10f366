package localkms

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"time"
)

// explainPath ends the path at which an admin handler shows the newest refusals.
const explainPath = "/explain"

// AdminHandler returns a handler through which the faults of a KMS are seen and
// set, as JSON: GET shows them, PUT replaces them; {} ends them. At a path that
// ends in /explain, GET shows what Denials returns. It asks nobody who they are: it
// must not be reachable but from the same machine.
func (k *KMS) AdminHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, explainPath) {
			if r.Method != http.MethodGet && r.Method != http.MethodHead {
				w.Header().Set("Allow", "GET, HEAD")
				http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
				return
			}
			writeJSON(w, append([]Decision{}, k.Denials()...)) // never null
			return
		}
		switch r.Method {
		case http.MethodGet, http.MethodHead:
		case http.MethodPut:
			if err := k.readFaults(r.Body); err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
		default:
			w.Header().Set("Allow", "GET, HEAD, PUT")
			http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
			return
		}
		writeJSON(w, k.Faults())
	})
}

func writeJSON(w http.ResponseWriter, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(body, '\n')) // the caller went away: there is nobody to tell
}

func (k *KMS) readFaults(body io.Reader) error {
	text, err := io.ReadAll(io.LimitReader(body, maxBody))
	if err != nil {
		return err
	}
	var f Faults
	if err := json.Unmarshal(text, &f); err != nil {
		return err
	}
	return k.SetFaults(f)
}

// faultsDoc is Faults as JSON.
type faultsDoc struct {
	Seed              uint64                  `json:"seed,omitempty"`
	RequestsPerSecond float64                 `json:"requests_per_second,omitempty"`
	Latency           map[string]durationText `json:"latency,omitempty"`
	Errors            []ErrorFault            `json:"errors,omitempty"`
	LostAnswers       map[string]float64      `json:"lost_answers,omitempty"`
	DisableKeys       []DisableFault          `json:"disable_keys,omitempty"`
	GrantDelay        durationText            `json:"grant_delay,omitzero"`
	RetireDelay       durationText            `json:"retire_delay,omitzero"`
}

// durationText is a duration that is text in JSON, as time.ParseDuration reads it.
type durationText time.Duration

// MarshalText implements encoding.TextMarshaler.
func (d durationText) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *durationText) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	*d = durationText(parsed)
	return err
}

// MarshalJSON implements json.Marshaler.
func (f Faults) MarshalJSON() ([]byte, error) {
	doc := faultsDoc{
		Seed:              f.Seed,
		RequestsPerSecond: f.RequestsPerSecond,
		Latency:           map[string]durationText{},
		Errors:            f.Errors,
		LostAnswers:       f.LostAnswers,
		DisableKeys:       f.DisableKeys,
		GrantDelay:        durationText(f.GrantDelay),
		RetireDelay:       durationText(f.RetireDelay),
	}
	for operation, d := range f.Latency {
		doc.Latency[operation] = durationText(d)
	}
	return json.Marshal(doc)
}

// UnmarshalJSON implements json.Unmarshaler. It refuses members it does not know:
// a misspelt fault would be one that never strikes.
func (f *Faults) UnmarshalJSON(text []byte) error {
	var doc faultsDoc
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&doc); err != nil {
		return err
	}
	*f = Faults{
		Seed:              doc.Seed,
		RequestsPerSecond: doc.RequestsPerSecond,
		Errors:            doc.Errors,
		LostAnswers:       doc.LostAnswers,
		DisableKeys:       doc.DisableKeys,
		GrantDelay:        time.Duration(doc.GrantDelay),
		RetireDelay:       time.Duration(doc.RetireDelay),
	}
	if len(doc.Latency) > 0 {
		f.Latency = make(map[string]time.Duration, len(doc.Latency))
	}
	for operation, d := range doc.Latency {
		f.Latency[operation] = time.Duration(d)
	}
	return nil
}
