package rpc

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	pb "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/problem"
)

// What a stranger can make the limiters remember is bounded, and who is busy is not forgotten by it.
func TestLimitersAreBounded(t *testing.T) {
	var l limiters
	l.set(0.001, 2)
	busy := l.of("busy")
	busy.Allow()
	busy.Allow()
	for i := range 3 * halfLimiters {
		l.of(fmt.Sprint(i))
		if i%1000 == 0 && l.of("busy") != busy {
			t.Fatalf("forgotten after %d others", i)
		}
	}
	if n := len(l.young) + len(l.old); n > 2*halfLimiters {
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
	late := httptest.NewRecorder()
	w = &secretWriter{ResponseWriter: late, call: &call{api: api, released: time.Now().Add(-deliverWithin - time.Second), wipe: func() {}}}
	func() {
		defer func() {
			if x := recover(); x != http.ErrAbortHandler {
				t.Fatalf("a late delivery was not broken off: %v", x)
			}
		}()
		_, _ = w.Write([]byte("sesame"))
	}()
	if late.Body.Len() != 0 || ev.failed != 1 {
		t.Fatalf("sent %q, counted %d", late.Body, ev.failed)
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

// FuzzCodec: whatever comes is either a message or noted as none, is never quoted, and no note stays.
func FuzzCodec(f *testing.F) {
	for _, s := range []string{"", "{}", `{"secret":"a/b"}`, `{"value":"hunter2!"}`, "\n\x03a/b", "\xff\xff", `{"claims":{"a":[[[[[1]]]]]}}`, strings.Repeat("[", 20_000)} {
		f.Add([]byte(s), true, 3)
		f.Add([]byte(s), false, 11)
	}
	var inputs []protoreflect.MessageDescriptor
	services := pb.File_bailment_v1_bailment_proto.Services()
	for i := range services.Len() {
		for j := range services.Get(i).Methods().Len() {
			inputs = append(inputs, services.Get(i).Methods().Get(j).Input())
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, asJSON bool, which int) {
		bad := &malformed{}
		c := &codec{name: "x", json: asJSON, bad: bad}
		m := dynamicpb.NewMessage(inputs[uint(which)%uint(len(inputs))])
		if err := c.Unmarshal(data, m); err != nil {
			t.Fatal(err)
		}
		err := bad.take(m)
		if bad.count.Load() != 0 || bad.take(m) != nil {
			t.Fatal("a note stayed")
		}
		if err != nil {
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
