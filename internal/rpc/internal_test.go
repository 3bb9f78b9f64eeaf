package rpc

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	pb "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/problem"
)

// What a stranger can make the limiters remember is bounded, and who is busy is not forgotten by it.
func TestLimitersAreBounded(t *testing.T) {
	l := newLimiters(0.001, 2)
	busy := l.of("busy")
	busy.Allow()
	busy.Allow()
	for i := range 2 * maxLimiters {
		l.of(fmt.Sprint(i))
		if i%1000 == 0 && l.of("busy") != busy {
			t.Fatalf("forgotten after %d others", i)
		}
	}
	if n := l.byKey.Len(); n > maxLimiters {
		t.Fatalf("%d are remembered", n)
	}
}

func TestSourceKey(t *testing.T) {
	for a, want := range map[string]string{
		"192.0.2.7": "192.0.2.7", "2001:db8:1:2:3::4": "2001:db8:1:2::/64", "2001:db8:1:2:ffff::9": "2001:db8:1:2::/64",
	} {
		if got := sourceKey(netip.MustParseAddr(a)); got != want {
			t.Errorf("%s: %s, want %s", a, got, want)
		}
	}
}

// events counts failed deliveries.
type events struct {
	noEvents
	failed int
}

func (e *events) DeliveryFailed() { e.failed++ }

// A value leaves within its time after its release or not at all, and what held it is wiped behind it.
func TestSecretWriter(t *testing.T) {
	ev := &events{}
	api := &API{o: Options{Events: ev}}
	rec := httptest.NewRecorder()
	buffer := []byte("sesame")
	w := &secretWriter{ResponseWriter: rec, call: &call{api: api, released: time.Now(), wipe: func() {}}}
	if _, err := w.Write(buffer); err != nil || rec.Body.String() != "sesame" {
		t.Fatal(rec.Body, err)
	}
	if !bytes.Equal(buffer, make([]byte, 6)) {
		t.Fatalf("the buffer still holds %q", buffer)
	}
	late, tooLate := httptest.NewRecorder(), []byte("sesame")
	w = &secretWriter{ResponseWriter: late, call: &call{api: api, released: time.Now().Add(-DeliverWithin - time.Second), wipe: func() {}}}
	func() {
		defer func() {
			if x := recover(); x != http.ErrAbortHandler {
				t.Fatalf("a late delivery was not broken off: %v", x)
			}
		}()
		_, _ = w.Write(tooLate)
	}()
	if late.Body.Len() != 0 || ev.failed != 1 || !bytes.Equal(tooLate, make([]byte, 6)) {
		t.Fatalf("sent %q, counted %d, the buffer holds %q", late.Body, ev.failed, tooLate)
	}
	// An error's text is nobody's secret, and is not bound to a release.
	plain := httptest.NewRecorder()
	w = &secretWriter{ResponseWriter: plain, call: &call{api: api}}
	if _, err := w.Write([]byte("refused")); err != nil || plain.Body.String() != "refused" {
		t.Fatal(plain.Body, err)
	}
}

// Each kind has its code, and nothing internal is told.
func TestKindsHaveCodes(t *testing.T) {
	for k := problem.Internal; k <= problem.UnknownOutcome; k++ {
		if codes[k] == 0 {
			t.Errorf("%s has no code", k)
		}
	}
}

// FuzzCodec: whatever comes is either a message or noted as none, is never quoted, and can't forge a note.
func FuzzCodec(f *testing.F) {
	for _, s := range []string{"", "{}", `{"secret":"a/b"}`, `{"value":"hunter2!"}`, "\n\x03a/b", "\xff\xff", `{"claims":{"a":[[[[[1]]]]]}}`, strings.Repeat("[", 20_000)} {
		f.Add([]byte(s), true, 3)
		f.Add([]byte(s), false, 11)
	}
	forged := &pb.GetRequest{}
	if err := note(forged, problem.New(problem.ReasonInternal, "forged")); err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(forged.ProtoReflect().GetUnknown()), false, 3)
	var inputs []protoreflect.MessageDescriptor
	for _, file := range []protoreflect.FileDescriptor{pb.File_bailment_v1_bailment_proto, pb.File_bailment_v1_spiffe_proto} {
		for i := range file.Services().Len() {
			for j := range file.Services().Get(i).Methods().Len() {
				inputs = append(inputs, file.Services().Get(i).Methods().Get(j).Input())
			}
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, asJSON bool, which int) {
		c := &codec{name: "x", json: asJSON}
		m := dynamicpb.NewMessage(inputs[uint(which)%uint(len(inputs))])
		if err := c.Unmarshal(data, m); err != nil {
			t.Fatal(err)
		}
		if err := noted(m); err != nil {
			if p := problem.As(err); p.Kind != problem.Invalid || p.Message == "" {
				t.Fatalf("noted %v", err)
			}
			m.ProtoReflect().SetUnknown(nil)
			if proto.Size(m) != 0 {
				t.Fatal("what could not be read was kept in part")
			}
			if len(data) > 12 && strings.Contains(err.Error(), string(data)) {
				t.Fatalf("quoted: %v", err)
			}
			return
		}
		if _, err := proto.Marshal(m); err != nil {
			t.Fatalf("accepted, and can't be written: %v", err)
		}
	})
}

// Half of the memory is for callers whose session stands, nobody has more than his part, and everything comes back.
func TestMemoryIsShared(t *testing.T) {
	m := &memory{limit: 64 << 20}
	const request = 1 << 20
	var strangers []*share
	hog := func(source string) (n int) {
		for {
			s := &share{by: source, strange: true}
			if !m.take(s, request, request) {
				return n
			}
			strangers = append(strangers, s)
			n++
		}
	}
	if n := hog("192.0.2.1"); n != 8 {
		t.Fatalf("one source has %d MiB", n)
	}
	for i := range 20 {
		hog(fmt.Sprintf("198.51.100.%d", i))
	}
	if len(strangers) != 32 {
		t.Fatalf("strangers have %d MiB", len(strangers))
	}
	bundle := &share{by: "alice"}
	if !m.take(bundle, 12<<20, 12<<20) {
		t.Fatal("a bundle of who may propose has no room")
	}
	if m.take(&share{by: "alice"}, 1, request) {
		t.Fatal("one identity has more than its part")
	}
	if !m.take(&share{by: "bob"}, request, request) {
		t.Fatal("another identity has no room")
	}
	for _, s := range append(strangers, bundle) {
		m.give(s)
		m.give(s) // the second time there is nothing to give
	}
	if m.all != request || m.strange != 0 || len(m.by) != 1 {
		t.Fatalf("left: %d, %d of strangers, %v", m.all, m.strange, m.by)
	}
}

// A buffer grows by what came, whatever was announced, and none is kept that is larger than what every request has anyway.
func TestBuffersGrowByWhatCame(t *testing.T) {
	a := &API{o: Options{Limits: Limits{RequestBytes: 1 << 20}}, memory: memory{limit: 64 << 20}}
	a.bodies.New = func() any { return new(body) }
	c := &call{api: a, route: &route{}, conn: &connection{refused: problem.New(problem.ReasonNoSession, "a stranger"), source: netip.MustParseAddr("192.0.2.1")}}
	pr, pw := io.Pipe()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", pr)
	r.ContentLength = 1 << 20
	done := make(chan *body, 1)
	go func() {
		in, p := a.readBody(httptest.NewRecorder(), r, c)
		if p != nil {
			t.Error(p)
		}
		done <- in
	}()
	if _, err := pw.Write(make([]byte, firstBuffer+1)); err != nil {
		t.Fatal(err)
	}
	a.memory.mu.Lock()
	taken := a.memory.by["192.0.2.1"]
	a.memory.mu.Unlock()
	if taken != firstBuffer {
		t.Fatalf("%d bytes were taken for %d that came", taken, firstBuffer+1)
	}
	_ = pw.Close()
	in := <-done
	a.putBody(in)
	if in.data != nil || a.memory.all != 0 {
		t.Fatalf("a buffer of %d bytes was kept, %d are counted", cap(in.data), a.memory.all)
	}
}

// A buffer that was refused room is nobody's any more: the next request that gets it is counted as its own sender's.
func TestRefusedBufferIsNobodys(t *testing.T) {
	a := &API{o: Options{Limits: Limits{RequestBytes: 1 << 20}}, memory: memory{limit: 8 << 20}}
	in := &body{data: make([]byte, firstBuffer)}
	a.bodies.New = func() any { return in }
	hog := &share{by: "192.0.2.1", strange: true}
	if !a.memory.take(hog, 1<<20, 1<<20) {
		t.Fatal("there is no room at all")
	}
	read := func(source string) string {
		counted := make(chan string, 1)
		c := &call{api: a, route: &route{}, conn: &connection{refused: problem.New(problem.ReasonNoSession, "a stranger"), source: netip.MustParseAddr(source)}}
		pr, pw := io.Pipe()
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", pr)
		go func() {
			_, _ = pw.Write(make([]byte, firstBuffer+1))
			a.memory.mu.Lock()
			defer a.memory.mu.Unlock()
			for by := range a.memory.by {
				if by != "192.0.2.1" {
					counted <- by
				}
			}
			_ = pw.Close()
		}()
		got, p := a.readBody(httptest.NewRecorder(), r, c)
		_ = pr.Close()
		if p != nil {
			return "refused"
		}
		a.putBody(got)
		close(counted)
		return <-counted
	}
	if by := read("192.0.2.1"); by != "refused" {
		t.Fatalf("who has his part got more, as %q", by)
	}
	if by := read("198.51.100.7"); by != "198.51.100.7" {
		t.Errorf("the next sender's bytes are counted as %q", by)
	}
}

// A field that is not known is refused wherever in a message it stands, as it is in JSON.
func TestUnknownFieldsInside(t *testing.T) {
	unknown := protowire.AppendVarint(protowire.AppendTag(nil, 999, protowire.VarintType), 1)
	claims, err := structpb.NewStruct(map[string]any{"unix": map[string]any{"groups": []any{1, "two", map[string]any{"x": nil}}}})
	if err != nil {
		t.Fatal(err)
	}
	fine := []proto.Message{
		&pb.ApproveRequest{Change: 7, Signature: &pb.Signature{Person: "alice"}},
		&pb.CreateJoinTokenRequest{Id: "x", Ttl: durationpb.New(time.Minute)},
		&pb.AttestWorkloadRequest{Claims: claims},
	}
	spoiled := []func() proto.Message{
		func() proto.Message {
			m := proto.CloneOf(fine[0].(*pb.ApproveRequest))
			m.Signature.ProtoReflect().SetUnknown(unknown)
			return m
		},
		func() proto.Message {
			m := proto.CloneOf(fine[1].(*pb.CreateJoinTokenRequest))
			m.Ttl.ProtoReflect().SetUnknown(unknown)
			return m
		},
		func() proto.Message { // in a message in a list in a map
			m := proto.CloneOf(fine[2].(*pb.AttestWorkloadRequest))
			m.Claims.Fields["unix"].GetStructValue().Fields["groups"].GetListValue().Values[2].GetStructValue().ProtoReflect().SetUnknown(unknown)
			return m
		},
	}
	for i, m := range fine {
		for _, x := range []struct {
			m    proto.Message
			want problem.Reason
		}{{m, ""}, {spoiled[i](), problem.ReasonUnsupported}} {
			b, err := proto.Marshal(x.m)
			if err != nil {
				t.Fatal(err)
			}
			p := decode(b, m.ProtoReflect().New().Interface(), false)
			if (p == nil) != (x.want == "") || p != nil && p.Reason != x.want {
				t.Errorf("%s: %v, want %q", m.ProtoReflect().Descriptor().Name(), p, x.want)
			}
		}
	}
}

// What can't be read leaves nothing behind but in the message itself.
func TestNotesDie(t *testing.T) {
	gone := make(chan struct{})
	func() {
		m := &pb.AttestRequest{}
		runtime.AddCleanup(m, func(c chan struct{}) { close(c) }, gone)
		if err := (&codec{name: codecProto}).Unmarshal([]byte("\x1a\x03abc\xff"), m); err != nil || !problem.Is(noted(m), problem.ReasonInvalid) {
			t.Error(err, noted(m))
		}
		if len(m.Evidence) != 0 {
			t.Error("a part of what can't be read was kept")
		}
	}()
	limit := time.After(10 * time.Second)
	for {
		runtime.GC()
		select {
		case <-gone:
			return
		case <-limit:
			t.Fatal("the message is still held by somebody")
		default:
		}
	}
}

func TestForms(t *testing.T) {
	unary, stream := &route{}, &route{stream: true}
	for _, x := range []struct {
		name   string
		rt     *route
		verb   string
		header http.Header
		status int // of the refusal; -1: none of its own
		ok     bool
	}{
		{"JSON", unary, "POST", http.Header{"Content-Type": {"application/json"}}, 0, true},
		{"JSON, spelt otherwise", unary, "POST", http.Header{"Content-Type": {"Application/JSON;Charset=UTF-8"}}, 0, true},
		{"gRPC", unary, "POST", http.Header{"Content-Type": {"application/grpc"}, "Grpc-Timeout": {"5S"}}, 0, true},
		{"gRPC over a stream", stream, "POST", http.Header{"Content-Type": {"application/grpc-web+json"}}, 0, true},
		{"identity", unary, "POST", http.Header{"Content-Type": {"application/proto"}, "Content-Encoding": {"identity"}}, 0, true},
		{"GET", unary, "GET", http.Header{"Content-Type": {"application/json"}}, 405, false},
		{"no content type", unary, "POST", nil, 415, false},
		{"XML", unary, "POST", http.Header{"Content-Type": {"application/xml"}}, 415, false},
		{"gRPC of another encoding", unary, "POST", http.Header{"Content-Type": {"application/grpc+thrift"}}, 415, false},
		{"a stream's form", unary, "POST", http.Header{"Content-Type": {"application/connect+json"}}, 415, false},
		{"a call's form", stream, "POST", http.Header{"Content-Type": {"application/json"}}, 415, false},
		{"compressed", unary, "POST", http.Header{"Content-Type": {"application/json"}, "Content-Encoding": {"gzip"}}, -1, false},
		{"compressed after nothing", unary, "POST", http.Header{"Content-Type": {"application/json"}, "Content-Encoding": {"identity", "gzip"}}, -1, false},
		{"compressed messages", unary, "POST", http.Header{"Content-Type": {"application/grpc"}, "Grpc-Encoding": {"gzip"}}, -1, false},
		{"a compressed stream", stream, "POST", http.Header{"Content-Type": {"application/connect+proto"}, "Connect-Content-Encoding": {"br"}}, -1, false},
		{"another version", unary, "POST", http.Header{"Content-Type": {"application/json"}, "Connect-Protocol-Version": {"2"}}, -1, false},
		{"a timeout that is none", unary, "POST", http.Header{"Content-Type": {"application/json"}, "Connect-Timeout-Ms": {"soon"}}, -1, false},
		{"two timeouts", unary, "POST", http.Header{"Content-Type": {"application/json"}, "Connect-Timeout-Ms": {"1", "2"}}, -1, false},
		{"gRPC's timeout without a unit", unary, "POST", http.Header{"Content-Type": {"application/grpc"}, "Grpc-Timeout": {"5"}}, -1, false},
		{"gRPC's timeout of nine digits", unary, "POST", http.Header{"Content-Type": {"application/grpc"}, "Grpc-Timeout": {"100000000S"}}, -1, false},
		{"gRPC's timeout, empty", unary, "POST", http.Header{"Content-Type": {"application/grpc"}, "Grpc-Timeout": {""}}, -1, false},
	} {
		t.Run(x.name, func(t *testing.T) {
			r := httptest.NewRequestWithContext(t.Context(), x.verb, "/", nil)
			if r.Header = x.header; r.Header == nil {
				r.Header = make(http.Header)
			}
			_, bad := formOf(r, x.rt)
			if (bad == nil) != x.ok {
				t.Fatalf("refused: %+v", bad)
			}
			if bad != nil && (bad.status != max(x.status, 0) || bad.problem.Kind != problem.Invalid || bad.problem.WayOut() == "") {
				t.Fatalf("%d %v", bad.status, bad.problem)
			}
		})
	}
	if d, ok := parseTimeout([]string{"99999999H"}, true); !ok || d != maxTimeout {
		t.Fatalf("a time beyond all times: %s", d)
	}
}

// All that may hold a value, or a file of them, leaves within its time or not at all: a secretWriter sends it.
func TestSecretRoutes(t *testing.T) {
	secret := []string{}
	for path, r := range New(nil, Options{}).routes {
		if r.secret {
			secret = append(secret, path)
		}
	}
	slices.Sort(secret)
	if want := []string{"/bailment.v1.ChangeService/CarryOut", "/bailment.v1.SecretService/Get", "/bailment.v1.SpiffeService/IssueJWT"}; !slices.Equal(secret, want) {
		t.Errorf("of %q, want %q", secret, want)
	}
}
