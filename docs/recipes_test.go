// Package docs_test has the documents prove what they show.
package docs_test

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden file anew")

// incident is a log of `twtrace lab`: five scenarios, one after the other.
const incident = "../internal/report/testdata/incident.jsonl"

// TestRecipes runs the recipes for jq and ClickHouse as they stand in the document.
func TestRecipes(t *testing.T) {
	for _, program := range []string{"jq", "clickhouse-server", "clickhouse-client"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s is not installed: .ci/deps does that", program)
		}
	}
	dir := t.TempDir()
	log, err := os.ReadFile(incident)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "events.jsonl"), log, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	cookie := regexp.MustCompile(`"socket":{"cookie":"(\d+)"}.*"state":`).FindSubmatch(log)[1]
	startClickHouse(t, dir)
	recipes, err := os.ReadFile("recipes.md")
	if err != nil {
		t.Fatal(err)
	}
	var told bytes.Buffer
	ran := 0
	for _, block := range regexp.MustCompile("(?s)```(jq|load|clickhouse)\n(.*?)```").FindAllSubmatch(recipes, -1) {
		name, args := "sh", []string{"-c", string(block[2])}
		if string(block[1]) == "clickhouse" {
			name, args = "clickhouse-client", []string{"--query", string(block[2])}
		}
		cmd := exec.Command(name, args...)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "COOKIE="+string(cookie))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%v:\n%s\n%s", err, block[2], out)
		}
		fmt.Fprintf(&told, "%s%s\n", block[2], out)
		ran++
	}
	const golden = "testdata/recipes.golden"
	if *update {
		if err := os.WriteFile(golden, told.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if ran == 0 || told.String() != string(want) {
		t.Errorf("%d recipes tell\n%s\nwant %s", ran, &told, golden)
	}
}

// startClickHouse starts a server on a port of loopback, and has clickhouse-client find
// it from dir.
func startClickHouse(t *testing.T, dir string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	listener.Close()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"config.xml": `<yandex><logger><level>error</level><console>1</console></logger><listen_host>127.0.0.1</listen_host>
			<tcp_port>PORT</tcp_port><path>DIR/data/</path><tmp_path>DIR/tmp/</tmp_path><users_config>users.xml</users_config>
			<mark_cache_size>67108864</mark_cache_size></yandex>`,
		"users.xml": `<yandex><profiles><default/></profiles><quotas><default/></quotas><users><default><password></password>
			<networks><ip>127.0.0.1</ip></networks><profile>default</profile><quota>default</quota></default></users></yandex>`,
		"clickhouse-client.xml": `<config><host>127.0.0.1</host><port>PORT</port></config>`,
	} {
		text = strings.NewReplacer("PORT", port, "DIR", dir).Replace(text)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	server := exec.CommandContext(ctx, "clickhouse-server", "--config-file="+filepath.Join(dir, "config.xml"))
	var said bytes.Buffer
	server.Dir, server.Stdout, server.Stderr = dir, &said, &said
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stop()
		_ = server.Wait() // it was killed
	})
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(end) {
			stop()
			_ = server.Wait()
			t.Fatalf("clickhouse-server does not listen: %s", &said)
		}
	}
}
