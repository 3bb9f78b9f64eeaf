package rpc_test

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"filippo.io/age"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/server/servertest"
	"github.com/bailment/bailment/internal/state"
)

// logged is what was written to a log.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) has(text []byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Contains(l.b.Bytes(), text)
}

// exported proposes and approves an export over the wire.
func exported(t *testing.T, h *servertest.House, alice *servertest.Clients, target string) uint64 {
	t.Helper()
	text := ceremony.Change{
		Scope: ceremony.Scope{Environment: h.Name, Genesis: h.Genesis, Epoch: h.Env().State().Env.Epoch}, Action: policy.ActExport, Target: target,
		Base: h.Env().State().Bundle.String(), Role: ceremony.Proposer, Person: "alice",
		Nonce: nonce(t), Expires: time.Now().Add(time.Hour).UTC().Truncate(time.Second), Reason: "a test",
	}
	p, err := alice.Change.Propose(t.Context(), &pb.ProposeRequest{
		Action: text.Action, Target: text.Target, Text: text.Text(), Expires: timestamppb.New(text.Expires), Reason: text.Reason,
		Signature: &pb.Signature{Sshsig: h.Sign("alice", ceremony.NamespaceChange, text.Text())},
	})
	if err != nil {
		t.Fatal(err)
	}
	text.Role, text.Number, text.Nonce = ceremony.Approver, p.Change, nonce(t)
	if _, err := alice.Change.Approve(t.Context(), &pb.ApproveRequest{
		Change: p.Change, Text: text.Text(), Signature: &pb.Signature{Sshsig: h.Sign("alice", ceremony.NamespaceChange, text.Text())},
	}); err != nil {
		t.Fatal(err)
	}
	return p.Change
}

// The largest export arrives whole by each protocol, once, at its proposer, and neither it nor a value is anywhere else: in no other answer
// about the change, and in no log.
func TestExportOverTheWire(t *testing.T) {
	var log logged
	h := servertest.Start(t, servertest.Options{
		Logger: slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Files: func(name string, p servertest.People) policy.Files {
			files := servertest.Bundle(name, p)
			files["secrets/many.yaml"] = []byte("apiVersion: bailment/v1\nkind: Secret\nmetadata: {name: app/many/*}\nspec: {type: opaque}\n")
			return files
		},
	})
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	alice := h.Clients(h.Login("alice").Cert)
	big := make([]byte, 60<<10)
	_, _ = rand.Read(big)
	for i := range 68 {
		if _, err := alice.Secret.Put(t.Context(), &pb.PutRequest{Secret: fmt.Sprintf("app/many/%02d", i), Value: big}); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []struct {
		name  string
		http2 bool
		opts  []connect.ClientOption
	}{
		{"connect over HTTP/1.1", false, nil},
		{"connect with JSON", true, []connect.ClientOption{connect.WithProtoJSON()}},
		{"gRPC", true, []connect.ClientOption{connect.WithGRPC()}},
	} {
		t.Run(p.name, func(t *testing.T) {
			as := func(name string) *servertest.Clients {
				return servertest.NewClients(h.Client(h.Login(name).Cert, p.http2), h.URL(), p.opts...)
			}
			alice, bob := as("alice"), as("bob")
			ch := exported(t, h, alice, state.ExportTarget("app/many/*", id.Recipient().String()))
			_, err := bob.Change.CarryOut(t.Context(), &pb.CarryOutRequest{Change: ch})
			want(t, err, connect.CodePermissionDenied, "separation")
			got, err := alice.Change.CarryOut(t.Context(), &pb.CarryOutRequest{Change: ch})
			if err != nil {
				t.Fatal(err)
			}
			plain, err := age.Decrypt(bytes.NewReader(got.File), id)
			if err != nil {
				t.Fatal(err)
			}
			if text, err := io.ReadAll(plain); err != nil || bytes.Count(text, []byte("\n")) != 69 || got.Values != 68 {
				t.Errorf("%d values in %d bytes: %v", got.Values, len(text), err)
			}
			again, err := alice.Change.CarryOut(t.Context(), &pb.CarryOutRequest{Change: ch})
			want(t, err, connect.CodeAborted, "conflict")
			if len(again.GetFile()) != 0 {
				t.Error("it left twice")
			}
			for name, c := range map[string]*servertest.Clients{"alice": alice, "bob": bob} {
				one, err := c.Change.GetChange(t.Context(), &pb.GetChangeRequest{Change: ch})
				if err != nil {
					t.Fatal(err)
				}
				all, err := c.Change.ListChanges(t.Context(), &pb.ListChangesRequest{})
				if err != nil {
					t.Fatal(err)
				}
				for _, m := range []proto.Message{one, all} {
					text, err := protojson.Marshal(m)
					if err != nil || len(text) > 256<<10 {
						t.Errorf("%s gets %d bytes about it: %v", name, len(text), err)
					}
				}
			}
		})
	}
	for _, text := range [][]byte{[]byte("age-encryption.org"), []byte(base64.StdEncoding.EncodeToString(big[:60])), []byte(base64.StdEncoding.EncodeToString([]byte("age-encryption.org/v1\n")))} {
		if log.has(text) {
			t.Errorf("the log has %.40q", text)
		}
	}
}
