package fetch_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rebake/rebake/internal/fetch"
)

// A download that is cut goes on where it stopped, in this run or the next one.
func TestFileGoesOn(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789"), 100_000)
	var ranges []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ranges = append(ranges, r.Header.Get("Range"))
		if len(ranges) == 1 {
			w.Header().Set("Content-Length", fmt.Sprint(len(data)))
			_, _ = w.Write(data[:300_000])
			panic(http.ErrAbortHandler)
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	}))
	defer srv.Close()
	u, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "file")
	for range 2 { // the second time it is whole
		if err := fetch.File(t.Context(), u, path); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%d of %d bytes, %v", len(got), len(data), err)
		}
	}
	var from int
	if _, err := fmt.Sscanf(ranges[1], "bytes=%d-", &from); err != nil || from == 0 || from > 300_000 || ranges[2] != "bytes=1000000-" {
		t.Errorf("asked for %q", ranges)
	}
	sum, err := fetch.Sum(t.Context(), path)
	if want := fmt.Sprintf("sha256:%x", sha256.Sum256(data)); err != nil || string(sum) != want {
		t.Errorf("%s, %v, want %s", sum, err, want)
	}
}

// What the server will never give is not asked for again.
func TestFileGivesUp(t *testing.T) {
	asked := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked++
		w.WriteHeader(http.StatusNotFound)
	}))
	defer srv.Close()
	u, err := url.Parse(strings.Replace(srv.URL, "http://", "http://u:geheim@", 1))
	if err != nil {
		t.Fatal(err)
	}
	err = fetch.File(t.Context(), u, filepath.Join(t.TempDir(), "file"))
	if err == nil || !strings.Contains(err.Error(), "404") || strings.Contains(err.Error(), "geheim") || asked != 1 {
		t.Errorf("asked %d times: %v", asked, err)
	}
}
