// Shortest paths in a road network, from one crossing to all others.

#include <algorithm>
#include <cstddef>
#include <functional>
#include <limits>
#include <optional>
#include <queue>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace roads {

using Node = std::size_t;

struct Edge {
    Node target;
    double minutes;
};

class Network {
public:
    // Returns the number of a crossing, a new one for a name that was not seen before.
    Node crossing(const std::string& name) {
        const auto [found, is_new] = numbers_.try_emplace(name, names_.size());
        if (is_new) {
            names_.push_back(name);
            edges_.emplace_back();
        }
        return found->second;
    }

    void connect(const std::string& from, const std::string& to, double minutes) {
        if (!(minutes >= 0.0)) {
            throw std::invalid_argument("a road from " + from + " takes negative time");
        }
        const Node start = crossing(from);
        const Node end = crossing(to);
        edges_[start].push_back({end, minutes});
        edges_[end].push_back({start, minutes});
    }

    std::size_t size() const noexcept { return names_.size(); }
    const std::string& name(Node node) const { return names_.at(node); }
    const std::vector<Edge>& edges(Node node) const { return edges_.at(node); }

private:
    std::unordered_map<std::string, Node> numbers_;
    std::vector<std::string> names_;
    std::vector<std::vector<Edge>> edges_;
};

struct Paths {
    std::vector<double> minutes;
    std::vector<std::optional<Node>> previous;

    // The crossings on the way to `target`, itself included; only itself where there is no way.
    std::vector<Node> to(Node target) const {
        std::vector<Node> path{target};
        while (previous.at(path.back())) {
            path.push_back(*previous[path.back()]);
        }
        std::reverse(path.begin(), path.end());
        return path;
    }
};

Paths shortest_paths(const Network& network, Node start) {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    Paths paths{std::vector<double>(network.size(), infinity),
                std::vector<std::optional<Node>>(network.size())};
    using Entry = std::pair<double, Node>;
    std::priority_queue<Entry, std::vector<Entry>, std::greater<>> waiting;
    paths.minutes.at(start) = 0.0;
    waiting.emplace(0.0, start);
    while (!waiting.empty()) {
        const auto [minutes, node] = waiting.top();
        waiting.pop();
        if (minutes > paths.minutes[node]) {
            continue;  // a shorter way was found since this entry was made
        }
        for (const Edge& edge : network.edges(node)) {
            const double total = minutes + edge.minutes;
            if (total < paths.minutes[edge.target]) {
                paths.minutes[edge.target] = total;
                paths.previous[edge.target] = node;
                waiting.emplace(total, edge.target);
            }
        }
    }
    return paths;
}

}  // namespace roads
