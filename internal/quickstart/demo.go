package quickstart

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/bailment/bailment/internal/durable"
	"github.com/bailment/bailment/internal/problem"
)

// The demo's two processes. Each gets the password from `bailment run`, in its environment, and from
// nowhere else: the database checks it, the service logs in with it.
const (
	demoUser     = "payments"
	demoVariable = "DB_PASSWORD"
)

func demoPassword() (string, error) {
	p := os.Getenv(demoVariable)
	if p == "" {
		return "", problem.New(problem.ReasonInvalid, "%s is not set", demoVariable).WithFix("start it with `bailment run --secret db/password=%s`", demoVariable)
	}
	return p, nil
}

// Database serves HTTP with basic authentication on a free loopback port until ctx ends, and writes its
// address into a file.
func Database(ctx context.Context, addressFile string) error {
	password, err := demoPassword()
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return problem.Wrap(err, problem.ReasonUnreachable, "listening")
	}
	server := &http.Server{
		ReadHeaderTimeout: 5 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			user, given, ok := r.BasicAuth()
			if !ok || user != demoUser || subtle.ConstantTimeCompare([]byte(given), []byte(password)) != 1 {
				w.Header().Set("WWW-Authenticate", `Basic realm="payments"`)
				http.Error(w, "wrong user or password", http.StatusUnauthorized)
				return
			}
			_, _ = io.WriteString(w, "42 payments are waiting\n") // a client that went away is not our failure
		}),
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := durable.WriteFile(addressFile, []byte(l.Addr().String()), 0o600); err != nil {
		return problem.Wrap(err, problem.ReasonStore, "writing the address")
	}
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return problem.Wrap(err, problem.ReasonInternal, "serving")
	}
	return nil
}

// Service logs in to the database twice: with a wrong password, which must be refused, and with the one it was
// handed.
func Service(ctx context.Context, address string, out io.Writer) error {
	password, err := demoPassword()
	if err != nil {
		return err
	}
	for _, try := range []struct {
		what, password string
		want           int
	}{{"a guessed password", "guess", http.StatusUnauthorized}, {"the password it was handed", password, http.StatusOK}} {
		code, body, err := login(ctx, address, try.password)
		if err != nil {
			return err
		}
		if code != try.want {
			return problem.New(problem.ReasonInternal, "with %s the database answered %d, not %d", try.what, code, try.want)
		}
		fmt.Fprintf(out, "with %s: %d %s: %s", try.what, code, http.StatusText(code), body)
	}
	return nil
}

func login(ctx context.Context, address, password string) (int, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/", nil)
	if err != nil {
		return 0, "", problem.Wrap(err, problem.ReasonInvalid, "the database's address")
	}
	req.SetBasicAuth(demoUser, password)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", problem.Wrap(err, problem.ReasonUnreachable, "asking the database")
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return 0, "", problem.Wrap(err, problem.ReasonUnreachable, "reading the database's answer")
	}
	return resp.StatusCode, string(body), nil
}
