package state_test

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// -update adds what is missing: an example of each new type, this version's history if there is none, and its root, and writes the reference.
// It never changes an example, a history or its root: they stand for what others have in their ledgers.
var update = flag.Bool("update", false, "add what testdata/replay is missing, and write the reference of entries")

const (
	replayDir = "../../testdata/replay"
	reference = "../../docs/reference/entries.md"
	examples  = 3 // of each type, at most

	// nextHistory is the one that -update writes: that of the next release that adds a type. The older ones stay.
	nextHistory = "history-v0.3"
)

// histories are those of all versions, the oldest first. Together they have every type.
var histories = []string{"history", "history-v0.2", nextHistory}

// storedEntry is a line of the history: an entry as it is stored.
type storedEntry struct {
	Salt string `json:"salt"` // base64
	Body string `json:"body"` // base64
}

// outcome is what the history must come to.
type outcome struct {
	Entries int          `json:"entries"`
	Root    state.Digest `json:"root"`
}

func exampleFile(k state.Kind) string {
	return filepath.Join(replayDir, fmt.Sprintf("%s-v%d.jsonl", k.Type, k.Version))
}

func lines(t *testing.T, path string) [][]byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	var out [][]byte
	s := bufio.NewScanner(bytes.NewReader(b))
	s.Buffer(nil, 4*state.MaxBody)
	for s.Scan() {
		out = append(out, bytes.Clone(s.Bytes()))
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

func save(t *testing.T, path string, rows [][]byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(bytes.Join(rows, []byte{'\n'}), '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}

// record adds what is missing, from a real history.
func record(t *testing.T) {
	t.Helper()
	w := controltest.New(t, controltest.HistoryOptions)
	controltest.End(w, controltest.History(w))
	have := map[state.Kind][][]byte{}
	var history [][]byte
	for _, x := range w.Stored() {
		e, err := state.Decode(x.Body)
		if err != nil {
			t.Fatal(err)
		}
		if k := e.Event.Kind(); len(have[k]) < examples {
			have[k] = append(have[k], x.Body)
		}
		line, err := json.Marshal(storedEntry{base64.StdEncoding.EncodeToString(x.Salt), base64.StdEncoding.EncodeToString(x.Body)})
		if err != nil {
			t.Fatal(err)
		}
		history = append(history, line)
	}
	for _, typ := range state.Types {
		if len(lines(t, exampleFile(typ.Kind))) == 0 {
			save(t, exampleFile(typ.Kind), have[typ.Kind])
		}
	}
	if len(lines(t, historyFile(nextHistory))) > 0 {
		return
	}
	save(t, historyFile(nextHistory), history)
	s, n := replay(t, nextHistory)
	line, err := json.Marshal(outcome{n, rootOf(t, s)})
	if err != nil {
		t.Fatal(err)
	}
	save(t, rootFile(nextHistory), [][]byte{line})
}

func historyFile(name string) string { return filepath.Join(replayDir, name+".jsonl") }
func rootFile(name string) string    { return filepath.Join(replayDir, name+".root.json") }

func replay(t *testing.T, history string) (*state.State, int) {
	t.Helper()
	s := state.New()
	rows := lines(t, historyFile(history))
	for i, line := range rows {
		body := bodyOf(t, line)
		if err := s.Apply(uint64(i), body, nil); err != nil {
			t.Fatal(err)
		}
	}
	return s, len(rows)
}

func bodyOf(t *testing.T, line []byte) []byte {
	t.Helper()
	var x storedEntry
	if err := json.Unmarshal(line, &x); err != nil {
		t.Fatal(err)
	}
	body, err := base64.StdEncoding.DecodeString(x.Body)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func rootOf(t *testing.T, s *state.State) state.Digest {
	t.Helper()
	var b bytes.Buffer
	if err := s.Snapshot(&b); err != nil {
		t.Fatal(err)
	}
	return state.RootOf(b.Bytes())
}

// Entries of every type and version that was ever published are read as they were written.
func TestReplayExamples(t *testing.T) {
	if *update {
		record(t)
	}
	known := map[string]bool{}
	for _, typ := range state.Types {
		path := exampleFile(typ.Kind)
		known[filepath.Base(path)] = true
		rows := lines(t, path)
		if len(rows) == 0 {
			t.Errorf("%s has no example: run with -update", typ.Kind)
		}
		for i, body := range rows {
			e, err := state.Decode(body)
			if err != nil {
				t.Errorf("%s line %d: %v", path, i+1, err)
				continue
			}
			if e.Event.Kind() != typ.Kind {
				t.Errorf("%s line %d is a %s", path, i+1, e.Event.Kind())
			}
			if again, err := state.Encode(e); err != nil || !bytes.Equal(again, body) {
				t.Errorf("%s line %d is written differently now: %v\n%s\n%s", path, i+1, err, body, again)
			}
		}
	}
	files, err := filepath.Glob(filepath.Join(replayDir, "*.*-v*.jsonl")) // not the histories
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !known[filepath.Base(f)] {
			t.Errorf("%s is of a type that is no longer known: published types stay for ever", f)
		}
	}
}

// Every history that somebody has in his ledger still gives the same state.
func TestReplayHistory(t *testing.T) {
	found, err := filepath.Glob(filepath.Join(replayDir, "history*.jsonl"))
	if err != nil || len(found) != len(histories) {
		t.Fatalf("there are the histories %v (%v): published ones stay for ever", found, err)
	}
	seen := map[state.Kind]bool{}
	for _, name := range histories {
		t.Run(name, func(t *testing.T) {
			rows := lines(t, rootFile(name))
			if len(rows) != 1 {
				t.Fatal("no outcome: run with -update")
			}
			var want outcome
			if err := json.Unmarshal(rows[0], &want); err != nil {
				t.Fatal(err)
			}
			s, n := replay(t, name)
			if got := rootOf(t, s); n != want.Entries || got != want.Root {
				t.Fatalf("%d entries give %s; %d gave %s", n, got, want.Entries, want.Root)
			}
			for i, line := range lines(t, historyFile(name)) {
				body := bodyOf(t, line)
				e, err := state.Decode(body)
				if err != nil {
					t.Fatal(err)
				}
				seen[e.Event.Kind()] = true
				if again, err := state.Encode(e); err != nil || !bytes.Equal(again, body) {
					t.Errorf("entry %d is written differently now: %v", i, err)
				}
			}
		})
	}
	for _, typ := range state.Types {
		if !seen[typ.Kind] {
			t.Errorf("the histories have no %s", typ.Kind)
		}
	}
}

func TestTypes(t *testing.T) {
	seen := map[state.Kind]bool{}
	docs := map[string]bool{}
	newest := map[string]int{}
	for _, typ := range state.Types {
		// Which version an entry is of depends on what it says: TestVersions.
		if got := typ.New().Kind(); got.Type != typ.Kind.Type {
			t.Errorf("the row of %s makes a %s", typ.Kind, got)
		}
		if newest[typ.Kind.Type]++; newest[typ.Kind.Type] != typ.Kind.Version {
			t.Errorf("%s is the version %d in the table", typ.Kind, newest[typ.Kind.Type])
		}
		if typ.New() == typ.New() && reflect.TypeOf(typ.New()).Elem().Size() > 0 {
			t.Errorf("%s: events are shared", typ.Kind)
		}
		// A second version may be for the same reason as that of another type.
		if seen[typ.Kind] || docs[typ.Doc] && typ.Kind.Version == 1 || len(typ.Doc) < 10 {
			t.Errorf("%s stands twice, or its words do, or it has none", typ.Kind)
		}
		seen[typ.Kind], docs[typ.Doc] = true, true
	}
	for _, unknown := range []string{
		`{"type":"secret.released","v":3,"time":"2026-01-02T03:04:05.678Z","body":{}}`,
		`{"type":"rollout.moved","v":2,"time":"2026-01-02T03:04:05.678Z","body":{}}`,
		`{"type":"secret.shared","v":1,"time":"2026-01-02T03:04:05.678Z","body":{}}`,
	} {
		if _, err := state.Decode([]byte(unknown)); !problem.Is(err, problem.ReasonUnknownVersion) {
			t.Errorf("%s: %v", unknown, err)
		}
	}
	for _, bad := range []string{
		`{"type":"lease.returned","v":1,"time":"2026-01-02T03:04:05.678Z","body":{"lease":1,"leases":2}}`,
		`{"type":"lease.returned","v":1,"time":"2026-01-02T03:04:05.678Z","body":{"lease":1}} x`,
		`{"type":"lease.returned","v":1,"time":"2026-01-02T03:04:05.678Z","body":{"lease":-1}}`,
		`{"type":"lease.returned","v":1,"time":"2026-01-02T03:04:05.678Z"}`,
		`{"type":"lease.returned","v":1,"when":"2026-01-02T03:04:05.678Z","body":{}}`,
		`[]`, ``, `null`,
	} {
		if e, err := state.Decode([]byte(bad)); err == nil {
			t.Errorf("%s was read as %+v", bad, e)
		}
	}
	if _, err := state.Decode(bytes.Repeat([]byte{' '}, state.MaxBody+1)); !problem.Is(err, problem.ReasonTooLarge) {
		t.Errorf("an entry of any size is read: %v", err)
	}
	if _, err := state.Encode(&state.Entry{Event: &state.ChangeRejected{Reason: strings.Repeat("x", state.MaxBody)}}); !problem.Is(err, problem.ReasonTooLarge) {
		t.Errorf("an entry of any size is written: %v", err)
	}
}

// The reference of entries is made from the types, and is current.
func TestReference(t *testing.T) {
	want := writeReference()
	if *update {
		save(t, reference, [][]byte{[]byte(strings.TrimSuffix(want, "\n"))})
	}
	got, err := os.ReadFile(reference)
	if err != nil || string(got) != want {
		t.Errorf("%s is not current (%v): run with -update", reference, err)
	}
}

func writeReference() string {
	var b strings.Builder
	b.WriteString("# Entries of the ledger\n\n<!-- Generated from internal/state by its tests (-update). Do not edit. -->\n\n" +
		"An entry's body is one line of JSON: `{\"type\":…,\"v\":…,\"time\":…,\"body\":{…}}`, at most 32 KiB. A type and version never change their meaning; a reader\n" +
		"that does not know one stops. Unknown fields are errors. `time` is RFC 3339 in UTC with milliseconds; a digest is `sha256:` and 64 hex digits; bytes are base64.\n" +
		"Examples of every type, as stored, are in `testdata/replay/`.\n\n| type | v | what it says |\n|---|---|---|\n")
	for _, typ := range state.Types {
		fmt.Fprintf(&b, "| [`%s`](#%s) | %d | %s |\n", typ.Kind.Type, anchor(typ.Kind), typ.Kind.Version, typ.Doc)
	}
	parts := []reflect.Type{}
	for _, typ := range state.Types {
		fmt.Fprintf(&b, "\n## %s v%d\n\n%s.\n\n", typ.Kind.Type, typ.Kind.Version, strings.ToUpper(typ.Doc[:1])+typ.Doc[1:])
		fields(&b, reflect.TypeOf(typ.New()).Elem(), &parts)
	}
	b.WriteString("\n# Parts\n")
	for i := 0; i < len(parts); i++ { // grows while it is walked
		fmt.Fprintf(&b, "\n## %s\n\n", parts[i].Name())
		fields(&b, parts[i], &parts)
	}
	return b.String()
}

func anchor(k state.Kind) string {
	return fmt.Sprintf("%s-v%d", strings.ReplaceAll(k.Type, ".", ""), k.Version)
}

func fields(b *strings.Builder, t reflect.Type, parts *[]reflect.Type) {
	b.WriteString("| field | type | |\n|---|---|---|\n")
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		optional := ""
		if strings.Contains(options, "omit") {
			optional = "optional"
		}
		fmt.Fprintf(b, "| `%s` | %s | %s |\n", name, typeName(f.Type, parts), optional)
	}
}

func typeName(t reflect.Type, parts *[]reflect.Type) string {
	switch t {
	case reflect.TypeFor[state.Digest]():
		return "digest"
	case reflect.TypeFor[state.Millis]():
		return "time"
	case reflect.TypeFor[[]byte]():
		return "bytes"
	case reflect.TypeFor[state.VersionState]():
		return "state of a version"
	}
	switch t.Kind() {
	case reflect.Pointer:
		return typeName(t.Elem(), parts)
	case reflect.Slice:
		return "list of " + typeName(t.Elem(), parts)
	case reflect.Map:
		return "map of " + typeName(t.Elem(), parts)
	case reflect.Struct:
		known := false
		for _, p := range *parts {
			known = known || p == t
		}
		if !known {
			*parts = append(*parts, t)
		}
		return fmt.Sprintf("[%s](#%s)", t.Name(), strings.ToLower(t.Name()))
	case reflect.String:
		return "text"
	case reflect.Bool:
		return "boolean"
	case reflect.Interface:
		return "anything"
	}
	return "number"
}
