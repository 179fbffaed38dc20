package main

import (
	"fmt"
	"net/http"
	"time"
)

func handler(version string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Release", version)
		fmt.Fprintln(w, version)
	})
	mux.HandleFunc("/slow", func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(slowFor)
		w.Header().Set("X-Release", version)
		fmt.Fprintln(w, version)
	})
	mux.HandleFunc("/stream", func(w http.ResponseWriter, _ *http.Request) {
		for until := time.Now().Add(streamFor); time.Now().Before(until); time.Sleep(100 * time.Millisecond) {
			fmt.Fprintln(w, version)
			w.(http.Flusher).Flush()
		}
		fmt.Fprintln(w, "end")
	})
	mux.HandleFunc("/health", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	return mux
}
